# SPDX-License-Identifier: Apache-2.0
"""Task arithmetic: the scaled sum of task vectors."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Merge, Site, sum_of
from mdft_fast.model import TASK_ARITHMETIC
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class TaskArithmetic(Merge):
    """Scales the sum of the task vectors.

    The same as λ = scale everywhere. Of one model it is that model only with a scale of 1.

    Attributes:
        scale: of the sum.
    """

    scale: float = TASK_ARITHMETIC

    name = "task_arithmetic"
    source = "arXiv:2212.04089"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the sum, scaled and then rounded once."""
        return (self.scale * sum_of(deltas)).float()
