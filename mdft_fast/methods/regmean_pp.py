# SPDX-License-Identifier: Apache-2.0
"""RegMean++: RegMean whose inputs come through the blocks that are merged already."""

from __future__ import annotations

import dataclasses

from mdft_fast.methods.regmean import Regmean


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegmeanPp(Regmean):
    """Takes RegMean's solution block by block, behind the blocks that it has merged already.

    x_t is what reaches the layer in task k's own version of the block, when the hidden states
    before the block are the merged model's. All else is as :class:`Regmean` has it.
    """

    name = "regmean_pp"
    source = "arXiv:2508.03121"
    behind_merged = True
