# SPDX-License-Identifier: Apache-2.0
"""What merge and merge_dots cost against the number of task vectors, in every codec."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import mdft_fast
from benchmarks.harness import OURS, Case, agree, race
from benchmarks.machine import Machine
from benchmarks.shapes import TABLES
from mdft_fast.arena import DTYPE_OF_CODEC, GROUP, LARGEST_CODE, Codec, Layout, TaskVectors

BLOCK = "transformer.resblocks.0."
TOLERANCE = 1e-3  # of a rival that sums 12.6 million products in one float32


def run(
    machine: Machine, codecs: Sequence[Codec], most: int, rounds: int, allow_busy: bool
) -> Iterator[dict[str, Any]]:
    """Yields a row for each K = 1, 2, 4, ... and codec: both operators, and their rivals in fp32.

    Args:
        machine: where.
        codecs: of the task vectors.
        most: the largest K, a power of two.
        rounds: turns of each; medians are reported.
        allow_busy: of :func:`~benchmarks.harness.race`.
    """
    shapes = {k: v for k, v in TABLES["ViT-L/14"].items() if k.startswith(BLOCK)}
    layout = Layout.of(shapes)
    for K in (2**i for i in range(most.bit_length())):
        for codec in codecs:
            races = [
                race(case, machine, rounds=rounds, allow_busy=allow_busy).summary()
                for case in cases(layout, codec, K, machine.device)
            ]
            yield _row(races, layout, codec, K)


def cases(layout: Layout, codec: Codec, K: int, device: torch.device) -> Iterator[Case]:
    """Merge and merge_dots; only float32 task vectors have rivals."""
    base, out, grad = (torch.ones(layout.elements, device=device) for _ in range(3))
    coefficients = torch.full((K, layout.L), 0.3, device=device)
    vectors, name = _vectors(codec, K, layout.elements, device), f"K = {K}, {codec}"
    check = functools.partial(agree, tolerance=TOLERANCE)
    fp32 = codec == "fp32"
    deltas, per_task = vectors.codes, coefficients[:, 0].contiguous()
    yield Case(
        "merge", name, lambda: mdft_fast.merge(base, vectors, coefficients, layout, out=out),
        {"addmv": lambda: torch.addmv(base, deltas.T, per_task, out=out)} if fp32 else {},
        check, 2 * base.nbytes + vectors.bytes,
    )  # fmt: skip
    grads = layout.views(grad)
    yield Case(
        "merge_dots", name, lambda: mdft_fast.merge_dots(grads, vectors, layout),
        {"mv": lambda: torch.mv(deltas, grad)} if fp32 else {},
        lambda ours, theirs: agree(ours.sum(1), theirs, TOLERANCE),
        grad.nbytes + vectors.bytes,
    )  # fmt: skip


def _row(
    races: Sequence[Mapping[str, Any]], layout: Layout, codec: Codec, K: int
) -> dict[str, Any]:
    """Returns both operators' races as one row."""
    ms = {one["op"]: one["contestants"][OURS]["median_ms"] for one in races}
    for one in races:
        rivals = {n: c["median_ms"] for n, c in one["contestants"].items() if n != OURS}
        ms |= rivals
    return {
        "K": K,
        "codec": codec,
        "elements": layout.elements,
        "copy_gb_per_s": races[0]["copy_gb_per_s"],
        "busy": any(one["busy"] for one in races),
        "ms": ms,
        "share_of_copy": {r["op"]: r["contestants"][OURS]["share_of_copy"] for r in races},
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
