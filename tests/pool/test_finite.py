# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in a saved pool are found when asked, by file, task, tensor and count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast.arena import CODECS, GROUP, LARGEST_CODE, TILE, codes_of
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool


def _slot(pool: Pool, arena: Tensor, name: str) -> Tensor:
    return pool.layout.views(arena)[pool.column_names.index(name)].view(-1)


def _put(pool: Pool, where: str, bad: float) -> None:
    """Writes into a pool in memory, as no packing would."""
    if where == "base":
        _slot(pool, pool.base, "wide.weight")[3:5] = bad
    elif where == "buffer":
        pool.buffers["shift"][1] = bad
    elif where == "head":
        pool.heads["task2"].weight[0, :3] = bad
    elif where == "bias":
        pool.heads["task1"].bias[0] = bad  # type: ignore[index]
    elif where == "task vector":
        _slot(pool, pool.vectors.codes[1], "out.bias")[2] = bad
    else:
        pool.vectors.codes[2, -1] = bad


WHERE = {
    "base": r"base.safetensors: base: tensor 'wide.weight' must be finite, got 2 of 1505 elements",
    "buffer": r"base.safetensors: base: tensor 'shift' must be finite, got 1 of 4 elements NaN or",
    "task vector": r"tau.safetensors: task vector of 'task1': tensor 'out.bias' .*got 1 of 4",
    "head": r"heads/task2.safetensors: head of 'task2': tensor 'weight' .*got 3 of 16",
    "bias": r"heads/task1.safetensors: head of 'task1': tensor 'bias' .*got 1 of 3",
    "padding": r"tau.safetensors: task vector of 'task2': padding must be 0, got NaN or infinity",
}


# Codes that are integers cannot be NaN or infinite.
CASES = [
    (where, codec)
    for where in WHERE
    for codec in CODECS
    if codec not in LARGEST_CODE or where not in ("task vector", "padding")
]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize(("where", "codec"), CASES)
def test_found_when_asked(where: str, codec: str, bad: float, parts: Any, tmp_path: Path) -> None:
    parts.options["codec"] = codec
    parts.tasks[1].head = Head(torch.ones(3, 4), torch.ones(3))
    pool = parts.build()
    pool.check_finite()
    _put(pool, where, bad)
    pool.save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool")
    with pytest.raises(MdftError, match=WHERE[where]):
        Pool.open(tmp_path / "pool", verify=True)
    with pytest.raises(MdftError, match=WHERE[where]):
        opened.check_finite(tmp_path / "pool")
    with pytest.raises(MdftError, match="^pool: " + WHERE[where].partition(": ")[2]):
        opened.check_finite()


@pytest.mark.parametrize("codec", LARGEST_CODE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-9])
def test_bad_scales_are_found(bad: float, codec: str, parts: Any, tmp_path: Path) -> None:
    pool = parts.build().encode(codec)
    pool.check_finite()
    first = pool.layout.slots[pool.column_names.index("wide.weight")].tile * TILE // GROUP
    pool.vectors.scales[1, [first, first + 15]] = bad  # type: ignore[index]
    pool.save(tmp_path / "pool")
    message = (
        r"tau.safetensors: task vector of 'task1': scales of tensor 'wide.weight' must be finite "
        r"and not below 0, got 2 of 16 that are not"
    )
    with pytest.raises(MdftError, match=message):
        Pool.open(tmp_path / "pool", verify=True)


@pytest.mark.parametrize(
    ("codec", "bad", "count"), [("int8", 0x80, 2), ("int4", 0x08, 2), ("int4", 0x88, 4)]
)
def test_codes_that_no_encoder_makes_are_found(
    codec: str, bad: int, count: int, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdft_fast.pool.finite.PIECE", 100)
    pool = parts.build().encode(codec)
    pool.check_finite()
    first = codes_of(pool.layout.slots[pool.column_names.index("out.weight")].tile * TILE, codec)
    pool.vectors.codes.view(torch.uint8)[2, [first, first + 101]] = bad
    limit = LARGEST_CODE[codec]
    with pytest.raises(
        MdftError,
        match=rf"'task2': codes of tensor 'out.weight' must lie in \[-{limit}, {limit}\], got "
        rf"{count} of 2048 equal to -{limit + 1}$",
    ):
        pool.check_finite()


def test_counts_over_pieces(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdft_fast.pool.finite.PIECE", 100)
    pool = parts.build()
    pool.check_finite()
    _slot(pool, pool.base, "wide.weight")[[0, 99, 100, 1504]] = float("inf")
    with pytest.raises(MdftError, match=r"'wide.weight' must be finite, got 4 of 1505"):
        pool.check_finite()


def test_looks_at_a_piece_at_a_time(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = parts.build()
    monkeypatch.setattr("mdft_fast.pool.finite.PIECE", 1024)
    sizes = []
    real = torch.Tensor.aminmax

    def watch(tensor: Tensor) -> Any:
        sizes.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "aminmax", watch)
    pool.check_finite()
    assert max(sizes) == 1024
    assert sum(sizes) >= pool.N * (pool.K + 1)
