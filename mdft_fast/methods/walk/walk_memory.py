# SPDX-License-Identifier: Apache-2.0
"""What a calibration takes in memory, told by shapes alone: no weight and no sample is read."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import Batch, arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.methods.walk.attention import make_observable
from mdft_fast.methods.walk.calls import Point, both_sides, observed
from mdft_fast.methods.walk.sensitivity import KEPT_OF_OUTPUTS, backward_inputs
from mdft_fast.methods.walk.structure import hindrance, module_of
from mdft_fast.model import LinearLayer, block_of, each, find_blocks, find_linear_layers
from mdft_fast.pool import Pool

_FLOAT, _DOUBLE, _HALF = 4, 8, 2  # bytes


@dataclasses.dataclass(frozen=True)
class WalkMemory:
    """Bytes beyond the pool, at the block that takes most.

    Attributes:
        weights: the model that is merged, and one more: a task's own, or the result.
        streams: both streams of all tasks, at one block's input.
        kept: outputs of a block's layers and what they are fitted to; 0 where none are kept.
        sums: Gram matrices and what one layer is solved with.
        sensitivities: gradients behind all blocks, and the matrices of one block; 0: no metric.
        pass_: what one forward pass of a batch takes, or a backward pass ahead.
    """

    weights: int
    streams: int
    kept: int
    sums: int
    sensitivities: int
    pass_: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class _LayerShape:
    """A layer's sizes: columns with the bias's, rows, and elements that a sample has there."""

    columns: int
    rows: int
    output: int
    shown: int


@torch.no_grad()
def forecast_walk(
    pool: Pool,
    backbone: nn.Module,
    example: Batch,
    *,
    samples: int,
    batch: int,
    keep: bool,
    measured: int,
) -> WalkMemory:
    """Forecasts what a calibration takes.

    Args:
        pool: whose K vectors are merged.
        backbone: the module that they belong to; its values are not used.
        example: what the encoder takes for one sample, on any device.
        samples: inputs a task.
        batch: inputs a forward pass.
        keep: see :func:`~mdft_fast.methods.walk.walk_layers`.
        measured: inputs a task of which sensitivities are measured; 0: none are.

    Raises:
        MdftError: if the backbone does not run on tensors without data.
    """
    shapes, streams = _shapes(pool, backbone, example)
    K, model = pool.K, sum(slot.numel for slot in pool.layout.slots) * _FLOAT
    outputs = [sum(layer.output for layer in layers) for layers in shapes]
    behind = [*streams[1:], streams[-1]]
    gradients = K * measured * sum(behind) * _HALF
    peaks = []
    for layers, stream, output in zip(shapes, streams, outputs, strict=True):
        matrices = K * sum(layer.rows**2 for layer in layers) * _FLOAT
        own = K * measured * stream * _FLOAT
        peaks.append(
            WalkMemory(
                weights=2 * model,
                streams=2 * K * samples * stream * _FLOAT,
                kept=K * samples * _kept(layers, stream) * _FLOAT if keep else 0,
                sums=max((_sums(layer, K, measured > 0) for layer in layers), default=0),
                sensitivities=gradients + matrices + own if measured else 0,
                pass_=min(batch, samples) * (2 * output + 4 * stream) * _FLOAT,
            )
        )
    inputs = min(measured, batch, backward_inputs(sum(outputs)))
    ahead = int(inputs * KEPT_OF_OUTPUTS * sum(outputs) * _FLOAT)
    first = WalkMemory(2 * model, 0, 0, 0, gradients, ahead)
    return max([first, *peaks], key=lambda memory: memory.total)


def _kept(layers: Sequence[_LayerShape], stream: int) -> int:
    """Returns the elements a sample that are kept when most are: shown ones go, outputs come."""
    gone = itertools.accumulate((layer.shown for layer in layers), initial=0)
    come = itertools.accumulate((layer.output for layer in layers), initial=0)
    shown = sum(layer.shown for layer in layers)
    return max((shown - a + b for a, b in zip(gone, come, strict=True)), default=0) + stream


def _sums(layer: _LayerShape, K: int, metric: bool) -> int:
    """Returns the bytes with which one layer is solved."""
    square, cross, outer = layer.columns**2, layer.columns * layer.rows, layer.rows**2
    fixed = K * cross * _DOUBLE + 5 * cross * _DOUBLE + 5 * square * _DOUBLE
    if not metric:
        return fixed
    per_task = square * _FLOAT + cross * _DOUBLE + outer * _FLOAT
    return fixed + K * per_task + 3 * outer * _DOUBLE


def _shapes(
    pool: Pool, backbone: nn.Module, example: Batch
) -> tuple[list[list[_LayerShape]], list[int]]:
    """Returns the layers' shapes block by block, and each block's stream, elements a sample."""
    module = _without_data(backbone)
    make_observable(module)
    layers = [
        layer
        for layer in find_linear_layers(module, pool.layout, pool.ties)
        if not hindrance(module, layer)
    ]
    try:
        blocks = list(find_blocks(module, pool.layout, None))
    except MdftError:
        blocks = [""]
    order: list[tuple[Point, Tensor]] = []
    points = dict.fromkeys([*both_sides(blocks), *both_sides(map(module_of, layers))])
    args, kwargs = arguments_of(each(lambda tensor: tensor[:1].to("meta"), example))
    see = observed(module, points, lambda point, tensor: order.append((point, tensor)))
    with see, torch.device("meta"):
        try:
            module(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            raise MdftError(f"forecast: the backbone must run without data: {error}") from error
    seen = dict(order)
    if not _in_line([entry for entry in order if entry[0].module in blocks]):
        blocks = [""]
    home = block_of([slot.name for slot in pool.layout.slots])
    blocks = [block for block in blocks if not block or Point("in", block) in seen]
    streams = [_elements(seen, Point("in", block), args, kwargs) for block in blocks]
    shapes = []
    for block, stream in zip(blocks, streams, strict=True):
        inside = [one for one in layers if block in ("", home[one.weight])]
        inside = [one for one in inside if Point("out", module_of(one)) in seen]
        shapes.append([_shape(module, one, seen, stream) for one in inside])
    return shapes, streams


def _in_line(order: Sequence[tuple[Point, Tensor]]) -> bool:
    names = list(dict.fromkeys(point.module for point, _ in order))
    if [point for point, _ in order] != both_sides(names):
        return False
    pairs = zip(order[1::2], order[2::2], strict=False)
    return all(out is into for (_, out), (_, into) in pairs)


def _elements(
    seen: dict[Point, Tensor], point: Point, args: Sequence[Tensor], kwargs: dict[str, Tensor]
) -> int:
    return (seen[point] if point in seen else next(iter((*args, *kwargs.values())))).numel()


def _shape(
    module: nn.Module, layer: LinearLayer, seen: dict[Point, Tensor], stream: int
) -> _LayerShape:
    weight = getattr(module.get_submodule(layer.name), layer.weight.rpartition(".")[2])
    rows, columns = layer.matrix(weight[None]).shape[1:]
    output = seen[Point("out", module_of(layer))].numel()
    shown = output
    if output != stream and layer.kind != "convolution":  # else it may write to the stream
        shown = min(output, seen[Point("in", module_of(layer))].numel())
    return _LayerShape(columns + (layer.bias is not None), rows, output, shown)


def _without_data(backbone: nn.Module) -> nn.Module:
    """Returns a copy on the meta device; found in its memo, no tensor is ever copied."""
    memo: dict[int, Tensor] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(backbone, memo).eval()
