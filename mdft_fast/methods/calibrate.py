# SPDX-License-Identifier: Apache-2.0
"""Calibration: each linear layer is fitted, in closed form, to what the tasks' models compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from mdft_fast.methods.affine import augmented, normalized, parts
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.least_squares import solve, solve_weighted
from mdft_fast.methods.method import InputMerge, Watch, mean_of
from mdft_fast.methods.walk import (
    LayerPass,
    Sensitivities,
    Walk,
    crowded,
    forecast_walk,
    walk_layers,
)
from mdft_fast.model import Batch, available_memory
from mdft_fast.options import Interval, Share, Weight, check
from mdft_fast.pool import Pool

_STEPS = 3  # of conjugate gradients from the solution for a metric of 1; more fit its noise
_FREE = 0.5  # share of the memory that is free up to which outputs are kept
_LEAST = 1e-6  # ridge of the regmean solution towards the base, as a share of the mean diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate(InputMerge):
    """Fits each linear layer to the tasks' own models, on what reaches it in the merged one.

    Layers are merged in the order of execution, each by one least-squares problem with a ridge:

        min_W  Σ_k c_k mean_t w_kt ‖W x_t − y_t‖²_{M_k} + rho Σ_k ‖(W − W_k) Ĝ_k^½‖²_{M_k}
               + epsilon · mean diagonal · ‖W − W_ref‖²

    x_t is the layer's input in the model merged so far, with a 1 for the bias. y_t is the output
    of task k's own layer; for a layer that writes to the residual stream, what brings the merged
    stream to where the task's own is behind that layer: it repairs what earlier layers left.
    c_k divides by the trace of task k's Gram; Ĝ_k = τ_kᵀτ_k divided by its trace; W_ref is the
    solution without x: Σ_k W_k (G_k + Ĝ_k) (Σ_k (G_k + Ĝ_k))⁻¹. M_k = (1 − fisher) I + fisher F_k,
    where F_k is what an output's error costs task k to second order, and w_kt likewise how much of
    that comes from position t. What is not a linear layer of a block gets the mean.

    Attributes:
        rho: weight of the data-free Grams.
        epsilon: weight of the ridge towards the regmean solution.
        class_token: further weight of the first position where the model's output reads it alone.
        repair: whether layers that write to the residual stream make up for earlier ones.
        fisher: share of what is measured, by one backward pass through each task's own model, in
            the weights of outputs and positions; 0: all count alike, and nothing is measured.
        keep: whether a block's outputs are kept while it is fitted; else it runs again for each of
            its layers, which takes less memory and more time, and gives the same bits. null: where
            all that a calibration takes is at most half of the memory that is free.
    """

    rho: Weight = 0.1
    epsilon: Annotated[float, Interval(gt=0)] = 0.01
    class_token: Annotated[float, Interval(gt=0)] = 1.0
    repair: bool = True
    fisher: Share = 0.9
    keep: bool | None = None

    name = "calibrate"
    source = "ours"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_model(
        self,
        pool: Pool,
        backbone: nn.Module,
        inputs: Sequence[TaskInputs],
        watch: Watch,
    ) -> Mapping[str, Tensor]:
        """See :class:`InputMerge`."""
        walk = Walk(pool, backbone, inputs)
        walk.install({name: walk.base(name) + mean_of(walk.deltas(name)) for name in walk.names})
        keep = self._keeps(pool, backbone, walk.probe, walk.device)
        walk.on_host = crowded(walk, keep=keep, measured=self.fisher > 0)
        measured = None
        if self.fisher:
            measured = Sensitivities(walk, pool.heads, batch=self.batch, seed=self.seed)
        for turn in walk_layers(
            walk,
            batch=self.batch,
            keep=keep,
            repair=self.repair,
            watch=watch,
            sensitivities=measured,
        ):
            walk.install(self._fitted(walk, turn))
        weights = walk.weights(walk.names)
        return {name: weights[name] - walk.base(name) for name in walk.names}

    def memory(self, pool: Pool, backbone: nn.Module, example: Batch) -> int:
        """See :class:`InputMerge`."""
        keep = self._keeps(pool, backbone, example, pool.base.device)
        return self._forecast(pool, backbone, example, keep=keep)

    def _keeps(self, pool: Pool, backbone: nn.Module, example: Batch, device: torch.device) -> bool:
        if self.keep is not None:
            return self.keep
        free = available_memory(device)
        return self._forecast(pool, backbone, example, keep=True) <= _FREE * free

    def _forecast(self, pool: Pool, backbone: nn.Module, example: Batch, *, keep: bool) -> int:
        samples = self.samples * (1 + self.copies)
        return forecast_walk(
            pool,
            backbone,
            example,
            samples=samples,
            batch=self.batch,
            keep=keep,
            measured=self.samples if self.fisher else 0,
        ).total

    def _fitted(self, walk: Walk, turn: LayerPass) -> dict[str, Tensor]:
        """Returns a layer's new weight and bias."""
        layer = turn.site.layer
        deltas = augmented(layer, walk.deltas)
        base = augmented(layer, lambda name: walk.base(name)[None])[0]
        grams, crosses, reference = [], [], _Reference(deltas)
        total, right = torch.zeros_like(reference.gram), torch.zeros_like(reference.cross)
        for k, delta in enumerate(deltas):
            gram, cross = (sums.double() for sums in turn.moments(k, self._weights(turn, k)))
            size = gram.diagonal().sum()
            if float(size) > 0:  # else no input has ever a value: what is free of data decides
                gram, cross = gram / size, cross / size
            cross -= gram @ base.T  # what is solved for is the difference to the base
            free = normalized(delta.T @ delta)
            reference.add(gram + free, delta)
            gram.add_(free, alpha=self.rho)
            cross.add_(free @ delta.T, alpha=self.rho)
            total, right = total + gram, right + cross
            if turn.sensitivities:  # all K at once; else only their sums
                grams.append(gram.float())
                crosses.append(cross)
        ridge = self.epsilon * total.diagonal().mean()
        pull = ridge * reference.solution()
        total.diagonal().add_(ridge)
        made = solve(total, right + pull)
        if turn.sensitivities:
            eye = torch.eye(made.shape[1], device=made.device, dtype=torch.float32)
            measured = [turn.sensitivities[k].metric for k in range(len(deltas))]
            metrics = [self.fisher * metric + (1 - self.fisher) * eye for metric in measured]
            cross = pull.float()
            for one, metric in zip(crosses, metrics, strict=True):
                cross.addmm_(one.float(), metric)
            made = solve_weighted(
                grams, metrics, float(ridge), cross, made.float(), steps=_STEPS
            ).double()
        return parts(layer, base + made.T, walk)

    def _weights(self, turn: LayerPass, k: int) -> Tensor:
        """Returns the weight of each position for a task, float32 ``[T]``; their size is free."""
        site = turn.site
        weights = site.positions.clone()
        if site.class_token and int((weights > 0).sum()) > 1:
            weights[0] *= self.class_token
        if k in turn.sensitivities:
            measured = turn.sensitivities[k].positions
            weights = weights * (self.fisher * measured + 1 - self.fisher)
        return weights


class _Reference:
    """The regmean solution with data-free Grams, as a difference to the base."""

    def __init__(self, deltas: Tensor) -> None:
        _, out, width = deltas.shape
        self.gram = deltas.new_zeros(width, width)
        self.cross = deltas.new_zeros(width, out)

    def add(self, gram: Tensor, delta: Tensor) -> None:
        """Adds a task's."""
        self.gram += gram
        self.cross += gram @ delta.T

    def solution(self) -> Tensor:
        """Returns it, ``[in, out]``."""
        self.gram.diagonal().add_(_LEAST * self.gram.diagonal().mean())
        return solve(self.gram, self.cross)
