# SPDX-License-Identifier: Apache-2.0
"""Low rank: the few directions in which fine-tuning moved a matrix most."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdft_fast.methods.method import Density, Site, Transform
from mdft_fast.options import Positive, check


@dataclasses.dataclass(frozen=True)
class Lowrank(Transform):
    """Keeps the leading singular triples of each block's matrices.

    Of τ_k = Σ_i s_i u_i v_iᵀ with s falling, the first r stay: as few as hold the share ``energy``
    of Σ s², and at most ``rank``. What is no weight of a linear layer in a numbered block stays as
    it is.

    Attributes:
        energy: share of a matrix's squared length that must stay.
        rank: the most singular triples of a matrix; None: as many as energy takes.
    """

    energy: Density = 0.9
    rank: Positive | None = None

    name = "lowrank"
    source = "arXiv:2412.00081"
    needs = ("layers",)

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Changes matrices alone, one after the other; of one that stays whole, no bit."""
        if site.layer is None or deltas.numel() == 0:
            return deltas
        made = torch.stack([self._project(matrix) for matrix in site.layer.matrix(deltas)])
        return site.layer.weights(made, tuple(deltas.shape[1:]))

    def _project(self, matrix: Tensor) -> Tensor:
        """Returns a matrix's best approximation of the rank that the fields allow.

        The shorter side's singular vectors are enough: τ V Vᵀ has no sign to choose. They are the
        eigenvectors of a Gram, float64, which loses what is 10⁻⁸ of the largest, float32's grain.
        """
        if not matrix.any():
            return matrix
        wide = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
        wide = wide.double()
        squares, directions = torch.linalg.eigh(wide.mT @ wide)  # rising
        squares = squares.flip(0).clamp(min=0)
        short = squares.cumsum(0) < self.energy * squares.sum()
        rank = min(int(short.sum()) + 1, len(squares) if self.rank is None else self.rank)
        if rank >= len(squares) or (self.energy == 1.0 and self.rank is None):
            return matrix
        leading = directions[:, -rank:]
        made: Tensor = ((wide @ leading) @ leading.mT).float()
        return made if matrix.shape[0] >= matrix.shape[1] else made.mT
