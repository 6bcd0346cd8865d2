# SPDX-License-Identifier: Apache-2.0
"""How a model's linear layers lie, found by measurement on a few inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdft_fast.methods.walk.attention import IN_PROJ
from mdft_fast.methods.walk.calls import Call, Point, both_sides, observed
from mdft_fast.model import LinearLayer

_EQUAL = 1e-6  # relative error of sums in float32, and
_SAME = 1e-4  # up to which a sum is taken for one at all
_LOST = 1e-2  # relative error by rounding above which a sum cannot be told
_FAINT = 1e-3  # of the largest channel's scale: a channel below it writes nothing to correct


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """How a layer writes to the residual stream: after = before + scale · y + shift.

    Attributes:
        before: where the stream is seen before the layer's output is added.
        after: where it is seen after that.
        scale: float32 ``[out]``; None: 1. A layer scale, say, or a norm of fixed statistics.
        shift: likewise; None: 0.
    """

    before: Point
    after: Point
    scale: Tensor | None
    shift: Tensor | None


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSite:
    """A linear layer, and what was found out about it.

    Attributes:
        layer: the layer.
        module: the module whose input and output are its own.
        batch_axis: of its input and output, for layers that read rows; 0 for convolutions.
        writer: how it writes to the residual stream; None: it does not, or that cannot be told.
        positions: float32 ``[T]``: 0 for a position whose output nobody reads, else 1.
        class_token: whether the model's output reads the first position of the last block alone.
    """

    layer: LinearLayer
    module: str
    batch_axis: int
    writer: Writer | None
    positions: Tensor
    class_token: bool

    def correction(self, target: Tensor, before: Tensor | None) -> Tensor:
        """Returns the output that brings the merged stream to a target.

        Args:
            target: ``[B, T, out]``, where the stream should be behind the layer.
            before: where it is ahead of it; None: the target is the layer's output itself.
        """
        if before is None or self.writer is None:
            return target
        y = target - before
        if self.writer.shift is not None:
            y = y - self.writer.shift
        return y if self.writer.scale is None else y / self.writer.scale

    def rows(self, tensor: Tensor) -> Tensor:
        """Returns an output as ``[B, T, channels]``."""
        if self.layer.kind == "convolution":
            return tensor.flatten(2).mT
        moved = tensor.movedim(self.batch_axis, 0)
        return moved.reshape(moved.shape[0], -1, moved.shape[-1])

    def inputs(self, tensor: Tensor, module: nn.Module) -> Tensor:
        """Returns an input as ``[B, T, in]``, what the weight's matrix is multiplied by."""
        if self.layer.kind != "convolution":
            return self.rows(tensor)
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        assert not isinstance(module.padding, str)
        size, stride = tuple(module.kernel_size), tuple(module.stride)
        padding, dilation = tuple(module.padding), tuple(module.dilation)
        if isinstance(module, nn.Conv1d):
            tensor = tensor.unsqueeze(2)
            size, stride, padding, dilation = (
                (1, *size),
                (1, *stride),
                (0, *padding),
                (1, *dilation),
            )
        return F.unfold(tensor, size, dilation, padding, stride).mT


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What was found in a block.

    Attributes:
        block: the block's name; "": the whole model.
        layers: in the order of execution.
        left_out: weight of a linear layer -> why it cannot be walked, in words.
        overwritten: the points whose tensor a later part of the block writes over.
    """

    block: str
    layers: tuple[LayerSite, ...]
    left_out: dict[str, str]
    overwritten: frozenset[Point]


def module_of(layer: LinearLayer) -> str:
    """Returns the module whose input and output are a layer's."""
    return f"{layer.name}.{IN_PROJ}" if layer.kind == "in_proj" else layer.name


def hindrance(module: nn.Module, layer: LinearLayer) -> str:
    """Returns why a layer's input cannot be laid out as rows, in words; "": it can."""
    part = module.get_submodule(layer.name)
    if isinstance(part, (nn.Conv1d, nn.Conv2d)):
        if part.padding_mode != "zeros":
            return f"it pads with {part.padding_mode!r}"
        return "its padding has a name, no numbers" if isinstance(part.padding, str) else ""
    if layer.kind == "in_proj" and not hasattr(part, IN_PROJ):
        return "its attention has a bias or zeros beside keys and values"
    return ""


@torch.no_grad()
def explore(
    module: nn.Module,
    block: str,
    layers: Sequence[LinearLayer],
    calls: Sequence[Call],
    reads: dict[str, Tensor],
    class_token: bool,
) -> Structure:
    """Runs a block on a few inputs and finds its layers' order, and which write to the stream.

    Args:
        module: the model.
        block: the block's name.
        layers: those in it.
        calls: the block's call for some inputs, and for fewer.
        reads: module -> the gradient of the model's output by that layer's output.
        class_token: see :class:`LayerSite`.
    """
    (seen, overwritten), (fewer, _) = (_record(module, block, call) for call in calls)
    sites, left_out = [], {}
    for layer in layers:
        name = module_of(layer)
        out = Point("out", name)
        why = hindrance(module, layer) or _irregular(seen.get(out, ()), fewer.get(out, ()), layer)
        if why:
            left_out[layer.weight] = why
            continue
        ((at, y),) = seen[out]
        axis = _changed_axis(y, fewer[out][0][1])
        writer = _writer(seen, at, y, 1 if layer.kind == "convolution" else y.dim() - 1)
        site = LayerSite(
            layer, name, axis, writer, torch.ones(0, dtype=torch.float32, device="cpu"), class_token
        )
        positions = (site.rows(reads[name]).abs().sum((0, 2)) > 0).float()
        if not positions.any():
            left_out[layer.weight] = "the model's output does not depend on it"
            continue
        sites.append((at, dataclasses.replace(site, positions=positions)))
    in_order = tuple(site for _, site in sorted(sites, key=lambda entry: entry[0]))
    return Structure(block, in_order, left_out, overwritten)


Seen = dict[Point, list[tuple[int, Tensor]]]


def _irregular(
    seen: Sequence[tuple[int, Tensor]], fewer: Sequence[tuple[int, Tensor]], layer: LinearLayer
) -> str:
    """Returns why a layer's output cannot be laid out as rows, in words; "": it can."""
    if not seen:
        return "its module is not called: it does not run, or its weight is read by another one"
    if len(seen) > 1:
        return f"it runs {len(seen)} times"
    y = seen[0][1]
    axis = _changed_axis(y, fewer[0][1]) if len(fewer) == 1 else -1
    if axis < 0 or axis == y.dim() - 1 or (layer.kind == "convolution" and axis != 0):
        return "its output does not have one row a sample"
    return ""


def _changed_axis(y: Tensor, fewer: Tensor) -> int:
    """Returns the axis that has another size where there are fewer samples; -1: none has."""
    if y.dim() != fewer.dim():
        return -1
    axes = [i for i, (a, b) in enumerate(zip(y.shape, fewer.shape, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else -1


def _record(module: nn.Module, block: str, call: Call) -> tuple[Seen, frozenset[Point]]:
    """Returns a block's points with the tensors seen there and when, and the overwritten ones."""
    part = module.get_submodule(block)
    seen: Seen = {}
    originals: list[tuple[Point, Tensor, int]] = []

    def see(point: Point, tensor: Tensor) -> None:
        seen.setdefault(point, []).append((len(originals), tensor.clone()))
        originals.append((point, tensor, tensor._version))

    prefix = f"{block}." if block else ""
    names = [block, *(prefix + name for name, _ in part.named_modules() if name)]
    call = call.of(call.stream.clone())
    with observed(module, both_sides(names), see):
        part(*call.args, **call.kwargs)
    overwritten = {point for point, tensor, version in originals if tensor._version != version}
    return seen, frozenset(overwritten)


def _writer(seen: Seen, at: int, y: Tensor, channels: int) -> Writer | None:
    """Returns where y arrives in a sum: after - before = scale · y + shift, channel by channel."""
    before: list[tuple[int, Point, Tensor]] = []
    after: list[tuple[int, Point, Tensor]] = []
    for point, tensors in seen.items():
        if len(tensors) == 1 and tensors[0][1].shape == y.shape:
            when, tensor = tensors[0]
            (before if when < at else after).append((when, point, tensor))
    before.sort(key=lambda entry: -entry[0])
    after.sort(key=lambda entry: entry[0])
    # Close fits first: a norm of what is normed already gives nearly the same tensor again.
    for error in (_EQUAL, _SAME):
        for _, late, u in after:
            for _, early, s in before:
                fit = _affine(u - s, y, channels, error, _rms(u))
                if fit is not None:
                    return Writer(early, late, *fit)
    return None


def _affine(
    difference: Tensor, y: Tensor, channels: int, error: float, magnitude: float
) -> tuple[Tensor | None, Tensor | None] | None:
    """Returns each channel's scale and shift that bring y to a difference; None: none do.

    A scale of 1 and a shift of 0 are None. A channel whose scale is next to nothing writes
    nothing that could be corrected, so such a layer is not taken for one that writes.
    """
    # What a sum loses by rounding counts where little is added to much.
    size, rounding = _rms(difference), 4 * torch.finfo(y.dtype).eps * magnitude
    tolerance = error * size + rounding
    if not size > 0 or rounding > _LOST * size:
        return None
    if _rms(difference - y) <= tolerance:
        return None, None
    axes = [axis for axis in range(y.dim()) if axis != channels]
    center, mean = y.mean(axes, keepdim=True), difference.mean(axes, keepdim=True)
    spread = (y - center).square().mean(axes, keepdim=True)
    scale = ((y - center) * (difference - mean)).mean(axes, keepdim=True)
    scale = torch.where(spread > 0, scale / spread.clamp_min(1e-30), 1.0)
    shift = mean - scale * center
    if _rms(difference - (scale * y + shift)) > tolerance:
        return None
    if float(scale.abs().min()) < _FAINT * float(scale.abs().max()):
        return None
    return scale.flatten(), shift.flatten()


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())
