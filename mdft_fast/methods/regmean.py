# SPDX-License-Identifier: Apache-2.0
"""RegMean: each linear layer is the least-squares mean of the tasks' own, on their inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from mdft_fast.methods.calibrate import augmented, normalized, parts
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.least_squares import Moments, solve
from mdft_fast.methods.method import InputMerge, Watch, mean_of
from mdft_fast.methods.walk import BlockInputs, LayerSite, Walk, walk_blocks
from mdft_fast.model import LinearLayer
from mdft_fast.options import Interval, Weight, check
from mdft_fast.pool import Pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regmean(InputMerge):
    """Takes the least-squares mean of each linear layer, on what reaches it in the tasks' models.

        G_k = mean_t x_t x_tᵀ, off its diagonal · off_diagonal, then / its trace
        G'_k = G_k + free · tr(G_k) · τ_kᵀτ_k / tr(τ_kᵀτ_k)
        τ   = mean τ + (Σ_k (τ_k − mean τ) G'_k) (Σ_k G'_k + ridge · mean diagonal)⁻¹

    x_t is what reaches the layer in task k's own model, with a 1 for the bias, at the positions
    that anything reads. The ridge draws towards the mean of the models, so that one model, or
    equal ones, come out as they are, and so does the mean in directions that nothing is known of.
    What is not a linear layer of a block gets the mean.

    Attributes:
        off_diagonal: factor of a Gram matrix off its diagonal.
        normalize: whether each Gram is divided by its trace, so that all tasks weigh the same.
        free: weight of the data-free Grams, at the trace of the others.
        ridge: as a share of the mean diagonal of the sum.
    """

    off_diagonal: Annotated[float, Interval(ge=0, le=1)] = 0.95
    normalize: bool = True
    free: Weight = 1.0
    ridge: Annotated[float, Interval(gt=0)] = 1e-6

    name = "regmean"
    source = "arXiv:2212.09849"
    behind_merged: ClassVar[bool] = False  # whether inputs come through the merged blocks

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        """See :class:`InputMerge`."""
        walk = Walk(pool, backbone, inputs)
        merged = {name: mean_of(walk.deltas(name)) for name in walk.names}
        walk.install({name: walk.base(name) + delta for name, delta in merged.items()})
        for block in walk_blocks(walk, batch=self.batch, merged=self.behind_merged, watch=watch):
            for layer, delta in self._solved(walk, block).items():
                made = parts(layer, delta, walk)
                merged |= made
                walk.install({name: walk.base(name) + part for name, part in made.items()})
        return merged

    def _solved(self, walk: Walk, block: BlockInputs) -> dict[LinearLayer, Tensor]:
        """Returns each layer's one vector as a matrix, bias last, float64 ``[out, in (+ 1)]``."""
        sums = {site: _Sums(augmented(site.layer, walk.deltas)) for site in block.layers}
        for k in range(walk.pool.K):
            self._add(walk, block, k, sums)
        return {site.layer: sums[site].solution(self.ridge) for site in block.layers}

    def _add(self, walk: Walk, block: BlockInputs, k: int, sums: Mapping[LayerSite, _Sums]) -> None:
        """Adds a task to each layer's sums."""
        rows = {site: _Rows(site, total.mean) for site, total in sums.items()}
        block.look(k, lambda site, x: rows[site].add(x))
        for site, total in sums.items():
            # Decoded anew: K tensors are in memory, not K blocks.
            delta = augmented(site.layer, lambda name: walk.deltas(name)[k : k + 1])[0]
            total.add(self._weighed(rows[site].mean_gram(), delta), delta)

    def _weighed(self, gram: Tensor, delta: Tensor) -> Tensor:
        """Returns G'_k of X'X/n, float64 ``[in, in]``."""
        gram = torch.lerp(gram.diagonal().diag(), gram, self.off_diagonal)
        if self.normalize:
            gram = normalized(gram)
        if self.free:
            gram = gram + self.free * gram.diagonal().sum() * normalized(delta.T @ delta)
        return gram


class _Rows:
    """What reaches a layer in one task's model."""

    def __init__(self, site: LayerSite, matrix: Tensor) -> None:
        """Begins with nothing, for a layer whose matrix has this shape."""
        self._moments = Moments(matrix.shape[1], 0, matrix.device)
        self._positions, self._count = site.positions, 0.0

    def add(self, x: Tensor) -> None:
        """Adds ``[B, T, in]``, at the positions that anything reads."""
        self._moments.add(x, None, self._positions)
        self._count += len(x) * float(self._positions.sum())

    def mean_gram(self) -> Tensor:
        """Returns the mean of x xᵀ, float64 ``[in (+ 1), in (+ 1)]``."""
        return self._moments.gram.double() / max(self._count, 1)


class _Sums:
    """Sums over tasks of Grams, and of Grams times what a task differs from the mean.

    Attributes:
        mean: of the tasks' matrices, float64 ``[out, in (+ 1)]``.
    """

    def __init__(self, deltas: Tensor) -> None:
        """Begins with none of the tasks whose matrices ``[K, out, in (+ 1)]`` these are."""
        self.mean = sum(deltas[1:], deltas[0]) / len(deltas)
        self._gram = deltas.new_zeros(deltas.shape[2], deltas.shape[2])
        self._cross = deltas.new_zeros(deltas.shape[2], deltas.shape[1])

    def add(self, gram: Tensor, delta: Tensor) -> None:
        """Adds a task's."""
        self._gram += gram
        self._cross += gram @ (delta - self.mean).T

    def solution(self, ridge: float) -> Tensor:
        """Returns the mean and what is added to it, ``[out, in (+ 1)]``."""
        self._gram.diagonal().add_(ridge * self._gram.diagonal().mean())
        return self.mean + solve(self._gram, self._cross).T
