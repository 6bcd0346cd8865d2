# SPDX-License-Identifier: Apache-2.0
"""BitDelta: matrices of one bit an element."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Site, Transform, flat
from mdft_fast.methods.sign import signs_at_mean


@dataclasses.dataclass(frozen=True)
class Bitdelta(Transform):
    """Keeps the signs of each block's matrices, at each matrix's mean magnitude.

        τ'_k = sgn τ_k · mean |τ_k|    (over the elements that are not 0, which stay 0)

    What is no weight of a linear layer in a numbered block stays as it is. The paper then learns
    the magnitudes on inputs; here λ does.
    """

    name = "bitdelta"
    source = "arXiv:2402.10193"
    needs = ("layers",)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Changes matrices alone."""
        if site.layer is None:
            return deltas
        return signs_at_mean(flat(deltas)).view(deltas.shape)
