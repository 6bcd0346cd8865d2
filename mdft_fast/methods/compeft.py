# SPDX-License-Identifier: Apache-2.0
"""ComPEFT: a task vector of three values."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from mdft_fast.methods.largest import kth_largest
from mdft_fast.methods.method import Density, Site, Transform, Vectors, flat, per_vector
from mdft_fast.options import Interval, check


@dataclasses.dataclass(frozen=True)
class Compeft(Transform):
    """Keeps the signs of each vector's largest elements, all at one magnitude.

        t_k  the m-th largest |τ_k| of the whole model's P elements, m = ⌊density · P⌋, at least 1
        σ_k  the standard deviation of all P elements of τ_k, before anything is dropped
        τ'_k = alpha · σ_k · sgn τ_k where |τ_k| ≥ t_k, else 0

    Attributes:
        density: share of the elements that each vector keeps.
        alpha: the kept elements' magnitude in standard deviations.
    """

    density: Density = 0.2
    alpha: Annotated[float, Interval(gt=0)] = 1.0

    name = "compeft"
    source = "arXiv:2311.13171"
    needs = ("survey",)

    def __post_init__(self) -> None:
        check(self, self.name)

    def survey(self, vectors: Vectors) -> tuple[Tensor, Tensor]:
        """Returns the K thresholds and the K magnitudes, float32 ``[K]``."""
        thresholds = kth_largest(vectors, max(1, int(self.density * vectors.parameters)))
        return thresholds, (self.alpha * _deviation(vectors)).float()

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Keeps signs alone."""
        thresholds, magnitudes = (per_vector(numbers, deltas) for numbers in site.survey)
        return (deltas.sign() * magnitudes).where(deltas.abs() >= thresholds, 0.0)


def _deviation(vectors: Vectors) -> Tensor:
    """Returns each vector's standard deviation over all its elements, float64 ``[K]``."""
    mean = (
        _sums(vectors, torch.zeros((), dtype=torch.float64, device="cpu"), 1) / vectors.parameters
    )
    return torch.sqrt(_sums(vectors, mean[:, None], 2) / vectors.parameters)


def _sums(vectors: Vectors, mean: Tensor, power: int) -> Tensor:
    """Returns the sums of (τ_k − mean)^power over all elements, float64 ``[K]``."""
    sums = [(flat(deltas).double() - mean).pow(power).sum(1) for deltas in vectors]
    return torch.stack(sums).sum(0)
