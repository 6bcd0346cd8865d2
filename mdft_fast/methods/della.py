# SPDX-License-Identifier: Apache-2.0
"""DELLA: as DARE, but the large elements of a row are likelier to stay than the small ones."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.methods.chances import chance
from mdft_fast.methods.method import Density, Site, Transform, in_rows
from mdft_fast.options import Interval, Seed, check


@dataclasses.dataclass(frozen=True)
class Della(Transform):
    """Keeps each element by chance, likelier the larger it is in its row, and scales it up.

        p   = density − epsilon + 2 epsilon · rank / (n − 1)    (rank 0: the row's least |τ|)
        τ'_k = τ_k / p    with probability p, else 0

    A row holds the n weights of one output; a tensor of one axis is one row, and a row of one
    element has p = density. Of equal magnitudes the later one ranks higher.

    Attributes:
        density: probability that an element is kept, on average over a row.
        epsilon: how much more it is for a row's largest element, and less for its least.
        rescale: whether what is kept is divided by its probability.
        seed: of the draws: equal seeds, equal vectors.
    """

    density: Density = 0.5  # ours, as for DARE
    epsilon: Annotated[float, Interval(ge=0, lt=0.5)] = 0.15  # mergekit's
    rescale: bool = True
    seed: Seed = 0

    name = "della"
    source = "arXiv:2406.11617"

    def __post_init__(self) -> None:
        check(self, self.name)
        if not self.epsilon < self.density <= 1 - self.epsilon:
            raise MdftError(
                f"della.epsilon: must be below density and at most 1 - density, got "
                f"{self.epsilon!r} with density {self.density!r}"
            )

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Ranks and draws for each vector on its own; density 1 changes no bit."""
        made = []
        for number, row in enumerate(in_rows(deltas)):
            probability = self._probability(row.abs())
            kept = chance(self, self.seed, site, number, row.shape, row.device) < probability
            scaled = row / probability if self.rescale else row
            made.append(scaled.where(kept, 0.0))
        return torch.stack(made).view(deltas.shape)

    def _probability(self, magnitudes: Tensor) -> Tensor:
        """Returns each element's probability to be kept, float32 like magnitudes ``[rows, n]``."""
        n = magnitudes.shape[-1]
        if n < 2:
            return torch.full_like(magnitudes, self.density)
        order = magnitudes.argsort(dim=-1, stable=True)
        steps = torch.linspace(-1, 1, n, dtype=torch.float64, device=magnitudes.device)
        by_rank = (self.density + self.epsilon * steps).float().expand_as(magnitudes)
        return torch.empty_like(magnitudes).scatter_(-1, order, by_rank)
