# SPDX-License-Identifier: Apache-2.0
"""What packing and opening may hold, as anonymous memory: mapped pages are the files' own."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mdft_fast.pool import Head, Pool
from tests.pool.conftest import tiny_parts


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("anonymous memory is read from /proc, which this system lacks")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
    assert found
    return int(found[1]) * 1024


class Square(nn.Module):
    """One matrix of 4 * side * side bytes."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(side, side))


def _models(folder: Path, K: int, side: int) -> Any:
    """Writes K models of one matrix."""
    made = tiny_parts(K=1)
    made.options["backbone"] = Square(side)
    made.base = folder / "base.safetensors"
    save_file({"weight": torch.zeros(side, side)}, made.base)
    head = Head(torch.ones(1, 4))
    task = type(made.tasks[0])
    made.tasks = [task(name=f"t{k}", class_names=("a",), head=head) for k in range(K)]
    made.models = [folder / f"t{k}.safetensors" for k in range(K)]
    for k, path in enumerate(made.models):
        save_file({"weight": torch.full((side, side), k + 1.0)}, path)
    return made


@pytest.fixture
def large(tmp_path: Path) -> tuple[Any, int]:
    """Thirty-two models of 4 MiB, in files; and the bytes of their task vectors."""
    return _models(tmp_path, 32, 1024), 32 * 4 * 2**20


def _peak_of(work: Callable[[], Any]) -> int:
    """Returns by how many bytes anonymous memory grew while something worked."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    gc.collect()
    before = _anonymous_bytes()
    watcher.start()
    work()
    stop.set()
    watcher.join()
    assert peak[0], "nothing was watched"
    return peak[0] - before


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_packing_to_a_folder_never_holds_all_task_vectors(
    codec: str, large: tuple[Any, int], tmp_path: Path
) -> None:
    parts, tau_bytes = large
    parts.pack(tmp_path / "warm", codec=codec)  # what the first call of anything keeps
    # θ, τ, the header's page, and up to ten pieces of 4 MiB, some not yet given back by malloc.
    assert _peak_of(lambda: parts.pack(tmp_path / "pool", codec=codec)) < 3 * tau_bytes / 4

    before = _anonymous_bytes()
    pool = Pool.open(tmp_path / "pool")
    assert float(pool.vectors.codes.max()) >= 16  # touches every page
    assert _anonymous_bytes() - before < tau_bytes / 16


def test_packing_again_in_another_codec_holds_one_row(
    large: tuple[Any, int], tmp_path: Path
) -> None:
    parts, tau_bytes = large
    pool = parts.pack(tmp_path / "pool")
    pool.save(tmp_path / "warm", "bf16")
    assert _peak_of(lambda: pool.save(tmp_path / "other", "bf16")) < tau_bytes / 3


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_packing_to_a_folder_stays_below_two_models(codec: str, tmp_path: Path) -> None:
    parts = _models(tmp_path, 3, 4096)  # of 64 MiB, many times a piece
    parts.pack(tmp_path / "warm", codec=codec)
    peak = _peak_of(lambda: parts.pack(tmp_path / "pool", codec=codec))
    assert peak < (1.25 if codec == "fp32" else 1.75) * 64 * 2**20
