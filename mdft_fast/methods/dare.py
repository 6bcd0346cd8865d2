# SPDX-License-Identifier: Apache-2.0
"""DARE: most of a task vector can be dropped at random, if the rest grows to make up for it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdft_fast.methods.chances import chance
from mdft_fast.methods.method import Density, Site, Transform
from mdft_fast.options import Seed, check


@dataclasses.dataclass(frozen=True)
class Dare(Transform):
    """Keeps each element by chance, and scales what stays so that the mean over draws is τ.

        τ'_k = τ_k / density    with probability density, else 0

    Attributes:
        density: probability that an element is kept.
        rescale: whether what is kept is divided by the density.
        seed: of the draws: equal seeds, equal vectors.
    """

    density: Density = 0.5  # ours: the noise that it adds is as long as the vector
    rescale: bool = True
    seed: Seed = 0

    name = "dare"
    source = "arXiv:2311.03099"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Draws for each vector on its own; density 1 changes no bit."""
        scale = self.density if self.rescale else 1.0
        made = []
        for number, row in enumerate(deltas):
            kept = chance(self, self.seed, site, number, row.shape, row.device) < self.density
            made.append((row / scale).where(kept, 0.0))
        return torch.stack(made)
