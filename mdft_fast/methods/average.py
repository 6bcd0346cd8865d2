# SPDX-License-Identifier: Apache-2.0
"""The mean of the models, a uniform soup."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Merge, Site, mean_of


@dataclasses.dataclass(frozen=True)
class Average(Merge):
    """Takes the mean of the models: what the field calls a uniform soup."""

    name = "average"
    source = "arXiv:2203.05482"

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the mean; of one model, its own bits."""
        return mean_of(deltas)
