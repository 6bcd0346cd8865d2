# SPDX-License-Identifier: Apache-2.0
"""Half of a model's tensors, by chance: the others go back to the base."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from mdft_fast.methods.chances import chance
from mdft_fast.methods.method import Site, Transform, per_vector
from mdft_fast.options import Interval, Seed, check


@dataclasses.dataclass(frozen=True)
class Half(Transform):
    """Leaves each vector some of its tensors, drawn by chance, and sets the others to zero.

    Attributes:
        share: probability that a vector keeps a tensor.
        seed: of the draws, each vector's own: equal seeds, equal tensors.
    """

    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    seed: Seed = 0

    name = "half"
    source = "arXiv:2404.18466"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Draws one number for each vector; what is kept keeps its bits."""
        draws = [chance(self, self.seed, site, k, (), deltas.device) for k in range(len(deltas))]
        kept = torch.stack(draws) < self.share
        return deltas.where(per_vector(kept, deltas), 0.0)
