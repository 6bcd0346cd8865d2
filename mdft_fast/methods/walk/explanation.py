# SPDX-License-Identifier: Apache-2.0
"""What a walk has found in a model, in a few lines: equal blocks are described once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import example_input
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.walk.structure import LayerSite, Structure
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.model import Batch, each
from mdft_fast.pool import Pool

_RANDOM = 4  # inputs where there are no samples


def explain_walk(pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs] = ()) -> str:
    """Describes how methods that look at inputs go through a backbone.

    Which linear layers there are, in the order of execution, which of them write to the residual
    stream, which positions count, and what gets the mean, with why. All is measured in the base.

    Args:
        pool: whose base is run.
        backbone: the module that its tensors belong to; its values are not used.
        inputs: of which a few are looked at; empty: random ones, of the pool's preprocess.

    Returns:
        Lines.
    """
    if not inputs:
        samples = _Noise(example_input(pool.preprocess))
        at = torch.arange(_RANDOM, device="cpu")
        inputs = [TaskInputs(pool.vector_names[0], samples, at, pool.base.device)]
    walk = Walk(pool, backbone, inputs)
    walk.install({name: walk.base(name) for name in walk.names})
    return "\n".join(_lines(walk))


@dataclasses.dataclass(frozen=True, eq=False)
class _Noise:
    """Random samples, equal ones on every call."""

    example: Batch

    def __len__(self) -> int:
        return _RANDOM

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        generator = torch.Generator().manual_seed(0)

        def draw(like: Tensor) -> Tensor:
            return torch.randn(
                _RANDOM, *like.shape[1:], generator=generator, dtype=torch.float32, device="cpu"
            )[indices].to(device)

        return each(draw, self.example)

    def digests(self) -> Any:
        return np.zeros((_RANDOM, 16), np.uint8)


@torch.no_grad()
def _lines(walk: Walk) -> Iterator[str]:
    structures = list(walk.structures())
    if walk.why_whole:
        yield f"the whole model is one block: {walk.why_whole}"
    else:
        yield f"{_span(walk.blocks)}: {len(walk.blocks)} blocks, one after another"
    if any(site.class_token for one in structures for site in one.layers):
        yield "the model's output reads the first position of the last block alone"
    for members, lines in _grouped(walk, structures):
        if not walk.why_whole:
            yield f"{_span(members)}:"
        yield from (f"  {line}" for line in lines)
    outside = walk.names_outside
    if outside:
        yield f"outside of the blocks, the mean: {', '.join(_modules(outside))}"


def _span(blocks: Sequence[str]) -> str:
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"


def _grouped(walk: Walk, structures: Sequence[Structure]) -> list[tuple[list[str], list[str]]]:
    """Returns runs of blocks that are described by the same lines, and these."""
    groups: list[tuple[list[str], list[str]]] = []
    for structure in structures:
        lines = list(_block(walk, structure))
        if groups and groups[-1][1] == lines:
            groups[-1][0].append(structure.block)
        else:
            groups.append(([structure.block], lines))
    return groups


def _block(walk: Walk, structure: Structure) -> Iterator[str]:
    prefix = f"{structure.block}." if structure.block else ""
    rows = [_layer(walk, site, prefix) for site in structure.layers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).strip()
    why = {name.removeprefix(prefix): words for name, words in structure.left_out.items()}
    named = {name for layer in walk.layers for name in (layer.weight, layer.bias)}
    for name in walk.names_in(structure.block):
        if name not in named:
            why[name.removeprefix(prefix)] = _why_not_linear(walk, name)
    for words, names in _by_words(why).items():
        yield f"the mean: {', '.join(_modules(names))}: {words}"


def _layer(walk: Walk, site: LayerSite, prefix: str) -> tuple[str, str, str, str]:
    layer = site.layer
    out, inputs = layer.matrix(walk.base(layer.weight)[None]).shape[1:]
    writes = ""
    if site.writer is not None:
        writes = "writes to the residual stream"
        if site.writer.scale is not None:
            writes += ", scaled"
    shape = f"{layer.kind} {inputs} -> {out}"
    return layer.name.removeprefix(prefix) or layer.name, shape, _positions(site), writes


def _positions(site: LayerSite) -> str:
    count, read = len(site.positions), site.positions.nonzero()[:, 0].tolist()
    if count == 1:
        return "one row a sample"
    if len(read) == count:
        return f"all {count} positions"
    if len(read) == 1:
        return f"position {read[0] + 1} of {count}"
    if read == list(range(read[0], read[-1] + 1)):
        return f"positions {read[0] + 1} to {read[-1] + 1} of {count}"
    return f"{len(read)} of {count} positions"


def _why_not_linear(walk: Walk, name: str) -> str:
    part = walk.module.get_submodule(name.rpartition(".")[0])
    if isinstance(part, (nn.Conv1d, nn.Conv2d)) and part.groups > 1:
        return f"its convolution has {part.groups} groups"
    if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is None:
        return "its attention has a matrix for each of query, key and value"
    return "no linear layer"


def _by_words(why: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, words in why.items():
        names.setdefault(words, []).append(name)
    return names


def _modules(names: Sequence[str]) -> list[str]:
    """Returns the modules of tensors; a parameter of no module of its own stays as it is."""
    leaves = (name.rpartition(".") for name in names)
    return list(
        dict.fromkeys(
            path if path and leaf in ("weight", "bias") else f"{path}.{leaf}".strip(".")
            for path, _, leaf in leaves
        )
    )
