# SPDX-License-Identifier: Apache-2.0
"""Model breadcrumbs: neither a tensor's outliers nor its many small changes."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Density, Site, Transform, flat, per_vector
from mdft_fast.options import Share, check


@dataclasses.dataclass(frozen=True)
class Breadcrumbs(Transform):
    """Drops each tensor's few largest elements and its many smallest, vector by vector.

    Of a tensor's n elements, m = ⌊density · n⌋, at least 1, are kept. Of the others up to
    ⌊outliers · n⌋ are the largest, and all further ones the smallest. Elements equal to the
    largest or least that is kept all stay.

    Attributes:
        density: share of a tensor's elements that is kept.
        outliers: share of a tensor's elements that is dropped as too large, if density leaves it.
    """

    density: Density = 0.85
    outliers: Share = 0.01

    name = "breadcrumbs"
    source = "arXiv:2312.06795"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Keeps what lies between two magnitudes of each vector."""
        n = deltas[0].numel()
        if n == 0:
            return deltas
        kept = max(1, int(self.density * n))
        above = min(int(self.outliers * n), n - kept)
        magnitudes = deltas.abs()
        # By rank from below; much faster than a sort, and the numbers are the same ones.
        largest = per_vector(flat(magnitudes).kthvalue(n - above, 1).values, deltas)
        least = per_vector(flat(magnitudes).kthvalue(n - above - kept + 1, 1).values, deltas)
        return deltas.where((least <= magnitudes) & (magnitudes <= largest), 0.0)
