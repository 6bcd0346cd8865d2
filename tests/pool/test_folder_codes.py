# SPDX-License-Identifier: Apache-2.0
"""Codes and scales of int8 and int4 on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mdft_fast.checkpoints import safetensors_writer as container
from mdft_fast.files import file_digest
from mdft_fast.pool import Pool
from tests.pool.conftest import cut, edited, flip, refuses


def _rewrite_tau(**changes: Tensor | None) -> Callable[[Path], None]:
    """Writes other tensors into tau.safetensors, and says so in pool.json."""

    def damage(folder: Path) -> None:
        path = folder / "tau.safetensors"
        kept = {name: tensor.clone() for name, tensor in load_file(path).items()} | changes
        path.unlink()
        save_file({name: t for name, t in kept.items() if t is not None}, path)
        written = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        edited(lambda c: c["files"].update({"tau.safetensors": written}))(folder)

    return damage


DAMAGED_CODES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no scales": ("int8", _rewrite_tau(scales=None),
        r"tau.safetensors: tensor 'scales' is missing, got \['codes'\]"),
    "fewer scales": ("int4", _rewrite_tau(scales=torch.zeros(3, 95)),
        r"tau.safetensors: tensor 'scales' must be \[3, 96\] in torch.float32 as in pool.json, "
        r"got \[3, 95\] in torch.float32"),
    "narrow scales": ("int8", _rewrite_tau(scales=torch.zeros(3, 96).half()),
        r"tensor 'scales' must be \[3, 96\] in torch.float32 .*got \[3, 96\] in torch.float16"),
    "cut scales": ("int8", cut("tau.safetensors"), r"tau.safetensors: must be .*cut short"),
    "codes of a byte": ("int4", _rewrite_tau(codes=torch.zeros(3, 12288, dtype=torch.uint8)),
        r"tensor 'codes' must be \[3, 6144\] in torch.uint8 .*got \[3, 12288\] in torch.uint8"),
    "codes without a sign": ("int8", _rewrite_tau(codes=torch.zeros(3, 12288, dtype=torch.uint8)),
        r"tensor 'codes' must be \[3, 12288\] in torch.int8 .*got \[3, 12288\] in torch.uint8"),
    "said to be int4": ("int8", edited(lambda c: c.update(codec="int4")),
        r"tensor 'codes' must be \[3, 6144\] in torch.uint8 .*got \[3, 12288\] in torch.int8"),
    "half the errors": ("int8", edited(lambda c: c["tensors"][2].pop("codec_error")),
        r"pool.json: 'tensors'\[2\]: key 'codec_error' is missing"),
    "an error in words": ("int8",
        edited(lambda c: c["tensors"][2]["codec_error"].update(relative="small")),
        r"'tensors'\[2\]: 'codec_error': key 'relative' must be int or float, got 'small'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED_CODES)
def test_damaged_codes_and_scales_are_refused(case: str, parts: Any, tmp_path: Path) -> None:
    codec, damage, message = DAMAGED_CODES[case]
    parts.build().save(tmp_path / "pool", codec)
    Pool.open(tmp_path / "pool", verify=True)
    damage(tmp_path / "pool")
    refuses(tmp_path / "pool", message)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_codes_then_scales_lie_aligned(codec: str, parts: Any, tmp_path: Path) -> None:
    pool = parts.build().encode(codec)
    pool.save(tmp_path / "pool")
    plain = load_file(tmp_path / "pool" / "tau.safetensors")
    assert list(plain) == ["codes", "scales"]
    assert torch.equal(plain["codes"], pool.vectors.codes)
    assert torch.equal(plain["scales"], pool.vectors.scales)  # type: ignore[arg-type]
    opened = Pool.open(tmp_path / "pool").vectors
    assert opened.codes.data_ptr() % container.PAGE == 0
    assert opened.scales is not None
    assert opened.scales.data_ptr() % 512 == 0


def test_changed_scales_are_found_when_asked(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool", "int4")
    flip(tmp_path / "pool" / "tau.safetensors", -3)
    Pool.open(tmp_path / "pool")
    refuses(tmp_path / "pool", r"tau.safetensors: sha256 must be", verify=True)


def test_a_pool_that_records_no_errors_opens(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool", "bf16")  # as schema 1 was written at first
    edited(lambda c: [tensor.pop("codec_error") for tensor in c["tensors"]])(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool", verify=True)
    assert opened.errors == {}
    opened.save(tmp_path / "again", "int8")
    assert Pool.open(tmp_path / "again").errors == opened.codec_error("int8")
