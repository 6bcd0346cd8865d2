# SPDX-License-Identifier: Apache-2.0
"""Calibration: each linear layer is fitted, in closed form, to what the tasks' models compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.least_squares import Moments, solve
from mdft_fast.methods.method import InputMerge, mean_of
from mdft_fast.methods.walk import LayerSite, Structure, Walk
from mdft_fast.methods.walk.calls import Call, Point
from mdft_fast.methods.walk.structure import affine
from mdft_fast.options import Interval, Weight, check
from mdft_fast.pool import Pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate(InputMerge):
    """Fits each linear layer to the tasks' own models, on what reaches it in the merged one.

    Attributes:
        rho: weight of the data-free Grams.
        epsilon: ridge towards the regmean solution, as a share of the mean diagonal.
        class_token: weight of the class token among the positions.
        repair: whether layers that write to the residual stream also make up for what earlier
            ones left.
    """

    rho: Weight = 0.01
    epsilon: Annotated[float, Interval(gt=0)] = 0.003
    class_token: Annotated[float, Interval(gt=0)] = 4.0
    repair: bool = True

    name = "calibrate"
    source = "ours"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs]
    ) -> Mapping[str, Tensor]:
        """See :class:`InputMerge`."""
        walk = Walk(pool, backbone, inputs)
        names = [slot.name for slot in pool.layout.slots]
        walk.install({name: walk.base(name) + mean_of(walk.deltas(name)) for name in names})
        _Calibration(self, walk).run()
        weights = walk.weights(names)
        return {name: weights[name] - walk.base(name) for name in names}


class _Calibration:
    """The state of one calibration."""

    def __init__(self, method: Calibrate, walk: Walk) -> None:
        self.method, self.walk = method, walk
        outside = walk.names_outside
        self.teacher: list[list[Call]] = []
        self.merged: list[list[Call]] = []
        for k, inputs in enumerate(walk.inputs):
            with walk.as_teacher(k, outside):
                self.teacher.append([walk.enter(b) for b in inputs.batches(method.batch)])
            self.merged.append([walk.enter(b) for b in inputs.batches(method.batch)])

    def run(self) -> None:
        """Goes through all blocks."""
        for structure in self.walk.structures():
            self._block(structure)

    def _block(self, structure: Structure) -> None:
        walk, block = self.walk, structure.block
        self.targets: dict[tuple[int, int, str], Tensor] = {}
        points = [self._target(site) for site in structure.layers]
        for k in range(walk.pool.K):
            with walk.as_teacher(k, walk.names_in(block)):
                for number, call in enumerate(self.teacher[k]):
                    seen, output = walk.run(block, call, points)
                    for site in structure.layers:
                        rows = site.rows(seen[self._target(site)])
                        self.targets[k, number, site.module] = rows
                    self.teacher[k][number] = call.following(output)
        for site in structure.layers:
            self._layer(block, site)
        for k in range(walk.pool.K):
            for number, call in enumerate(self.merged[k]):
                self.merged[k][number] = call.following(walk.run(block, call, [])[1])

    def _target(self, site: LayerSite) -> Point:
        """Returns where the teacher's stream shows what a layer is fitted to."""
        if self.method.repair and site.writer is not None:
            return site.writer.after
        return Point("out", site.module)

    def _weights(self, site: LayerSite) -> Tensor:
        positions = site.positions
        if len(positions) > 1 and bool(positions[1:].any()) and self.class_token_read:
            positions = positions.clone()
            positions[0] = self.method.class_token
        return positions

    @property
    def class_token_read(self) -> bool:
        return True

    def _layer(self, block: str, site: LayerSite) -> None:
        walk, layer, method = self.walk, site.layer, self.method
        module = walk.module.get_submodule(site.module)
        deltas = layer.matrix(walk.deltas(layer.weight)).double()
        K, out, width = deltas.shape
        bias = None if layer.bias is None else walk.deltas(layer.bias).double()
        wide = width + (bias is not None)
        if bias is not None:
            deltas = torch.cat([deltas, bias[:, :, None]], 2)
        base = layer.matrix(walk.base(layer.weight)[None])[0].double()
        if layer.bias is not None:
            base = torch.cat([base, walk.base(layer.bias).double()[:, None]], 1)
        gram = torch.zeros(wide, wide, dtype=torch.float64)
        cross = torch.zeros(wide, out, dtype=torch.float64)
        ref_gram, ref_cross = gram.clone(), cross.clone()
        weights = self._weights(site)
        for k in range(K):
            moments = self._moments(block, site, module, k, wide, out, weights)
            c = 1 / moments.gram.diagonal().double().sum()
            g = c * moments.gram.double()
            free = deltas[k].T @ deltas[k]
            size = free.diagonal().sum()
            free = free / size if size > 0 else free
            gram += g + method.rho * free
            # everything as a difference to the base: W = W_0 + D
            cross += c * moments.cross.double() - g @ base.T + method.rho * (free @ deltas[k].T)
            ref_gram += g + free
            ref_cross += (g + free) @ deltas[k].T
        reference = solve(ref_gram + 1e-6 * ref_gram.diagonal().mean() * torch.eye(wide), ref_cross)
        eps = method.epsilon * gram.diagonal().mean()
        made = solve(gram + eps * torch.eye(wide, dtype=gram.dtype), cross + eps * reference).T
        made = base + made
        new = {layer.weight: layer.weights(made[:, :width].float(), tuple(walk.base(layer.weight).shape))}
        if layer.bias is not None:
            new[layer.bias] = made[:, width].float().contiguous()
        walk.install(new)

    def _moments(self, block, site, module, k, wide, out, weights) -> Moments:
        walk = self.walk
        moments = Moments(wide, out, weights.device)
        writer = site.writer if self.method.repair else None
        scale = shift = None
        for number, call in enumerate(self.merged[k]):
            into = Point("in", site.module)
            points = [writer.before] if writer else []
            if writer is not None and scale is None:
                seen, _ = walk.run(block, call, [writer.before, writer.after, Point("out", site.module)])
                y = seen[Point("out", site.module)]
                channels = 1 if site.layer.kind == "convolution" else y.dim() - 1
                scale, shift = affine(seen[writer.after] - seen[writer.before], y, channels)
                if site.layer.kind != "convolution":
                    scale, shift = scale.flatten(), shift.flatten()
                else:
                    scale, shift = scale.flatten(), shift.flatten()
            seen, _ = walk.run(block, call, points, stop=into)
            x = site.inputs(seen[into], module)
            y = self.targets[k, number, site.module]
            if writer is not None:
                before = site.rows(seen[writer.before])
                y = y - before
                if bool((scale != 1).any()) or bool((shift != 0).any()):
                    y = (y - shift) / scale
            moments.add(x, y, weights)
        return moments
