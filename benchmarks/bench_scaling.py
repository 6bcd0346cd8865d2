# SPDX-License-Identifier: Apache-2.0
"""What merge and merge_dots cost against the number of task vectors, in every codec."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import mdft_fast
from benchmarks.harness import Machine
from benchmarks.shapes import TABLES
from mdft_fast.arena import DTYPE_OF_CODEC, GROUP, LARGEST_CODE, Codec, Layout, TaskVectors

BLOCK = "transformer.resblocks.0."


def run(
    machine: Machine, codecs: Sequence[Codec], most: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each K = 1, 2, 4, ... and codec: both operators, and their rivals in fp32.

    Args:
        machine: where.
        codecs: of the task vectors.
        most: the largest K, a power of two.
        rounds: turns of each; medians are reported.
    """
    shapes = {k: v for k, v in TABLES["ViT-L/14"].items() if k.startswith(BLOCK)}
    layout = Layout.of(shapes)
    base, out, grad = (torch.ones(layout.elements, device=machine.device) for _ in range(3))
    grads = layout.views(grad)
    for K in (2**i for i in range(most.bit_length())):
        scale = torch.full((K, len(layout.columns)), 0.3, device=machine.device)
        for codec in codecs:
            vectors = _vectors(codec, K, layout.elements, machine.device)

            def merge(v: TaskVectors = vectors, c: Tensor = scale) -> None:
                mdft_fast.merge(base, v, c, layout, out=out)

            def dots(v: TaskVectors = vectors) -> None:
                mdft_fast.merge_dots(grads, v, layout)

            calls = {"merge": merge, "merge_dots": dots}
            if codec == "fp32":
                deltas, one = vectors.codes, scale[:, 0].contiguous()
                calls["addmv"] = lambda d=deltas, c=one: torch.addmv(base, d.T, c, out=out)
                calls["mv"] = lambda d=deltas: torch.mv(d, grad)
            yield _row(machine, calls, codec, K, vectors, layout, rounds)
            del vectors


def _row(
    machine: Machine, calls: Mapping[str, Any], codec: Codec, K: int, vectors: TaskVectors,
    layout: Layout, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    rates = []
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(machine.seconds(call))
        rates.append(machine.copy_rate())
    moved = {"merge": 8 * layout.elements + vectors.bytes,
             "merge_dots": 4 * layout.elements + vectors.bytes}  # fmt: skip
    ms = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    copy = statistics.median(rates)
    return {
        "K": K,
        "codec": codec,
        "elements": layout.elements,
        "copy_gb_per_s": round(copy / 1e9, 2),
        "ms": {name: round(t, 3) for name, t in ms.items()},
        "share_of_copy": {n: round(moved[n] / ms[n] * 1e3 / copy, 3) for n in moved},
    }


def _vectors(codec: Codec, K: int, N: int, device: torch.device) -> TaskVectors:
    half = 2 if codec == "int4" else 1
    codes = torch.ones(K, N // half, dtype=DTYPE_OF_CODEC[codec], device=device)
    scales = torch.ones(K, N // GROUP, device=device) if codec in LARGEST_CODE else None
    return TaskVectors(codes, codec, scales)


def table(row: Mapping[str, Any]) -> str:
    """Returns one line."""
    times = "  ".join(f"{name} {ms:8.2f} ms" for name, ms in row["ms"].items())
    shares = "  ".join(f"{name} {share:.0%}" for name, share in row["share_of_copy"].items())
    return f"K = {row['K']:2} {row['codec']:5} {times}  of copy: {shares}"
