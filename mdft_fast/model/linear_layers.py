# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a backbone are matrices: told by a module's type and name, never by a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from mdft_fast.arena import Layout
from mdft_fast.model.granularity import block_of

LinearKind = Literal["linear", "conv1d", "convolution", "in_proj"]


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """A module's weight (and bias) that maps inputs to outputs linearly.

    Attributes:
        name: the module's.
        kind: "linear": ``nn.Linear``; "conv1d": GPT-2's, whose weight is [in, out];
            "convolution": ``nn.Conv1d`` and ``nn.Conv2d`` without groups; "in_proj": query, key
            and value of an ``nn.MultiheadAttention`` in one weight.
        weight: its tensor in the arena.
        bias: likewise; None: it has none that is merged.
        block: the block that holds it, or "stem" or "tail", as granularity "block" has it.
    """

    name: str
    kind: LinearKind
    weight: str
    bias: str | None
    block: str

    @property
    def inside(self) -> bool:
        """Whether it lies in a numbered block: methods for matrices change no other."""
        return self.block not in ("stem", "tail")

    def matrix(self, weights: Tensor) -> Tensor:
        """Returns weights ``[K, *shape]`` as matrices ``[K, out, in]``, a view."""
        return weights.mT if self.kind == "conv1d" else weights.flatten(2)

    def weights(self, matrices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns matrices ``[..., out, in]`` in the weight's own ``shape``."""
        made = matrices.mT if self.kind == "conv1d" else matrices
        return made.reshape(*matrices.shape[:-2], *shape)


def find_linear_layers(
    module: nn.Module, layout: Layout, ties: Mapping[str, str]
) -> tuple[LinearLayer, ...]:
    """Returns the linear layers whose weight is merged, in the order of registration.

    A weight that several modules share is a matrix once, under its first name.
    """
    blocks = block_of([slot.name for slot in layout.slots])
    layers: dict[str, LinearLayer] = {}
    for name, kind, weight, bias in _candidates(module):
        weight, bias = ties.get(weight, weight), ties.get(bias, bias)
        if weight in blocks and weight not in layers:
            merged_bias = bias if bias in blocks else None
            layers[weight] = LinearLayer(name, kind, weight, merged_bias, blocks[weight])
    return tuple(layers.values())


def _candidates(module: nn.Module) -> Iterator[tuple[str, LinearKind, str, str]]:
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            yield name, "in_proj", f"{prefix}in_proj_weight", f"{prefix}in_proj_bias"
        elif (kind := _kind(part)) is not None:
            yield name, kind, f"{prefix}weight", f"{prefix}bias"


def _kind(part: nn.Module) -> LinearKind | None:
    if isinstance(part, nn.Linear):
        return "linear"
    if isinstance(part, (nn.Conv1d, nn.Conv2d)) and part.groups == 1:
        return "convolution"
    if type(part).__name__ == "Conv1D" and hasattr(part, "nf"):  # transformers', for GPT-2
        return "conv1d"
    return None
