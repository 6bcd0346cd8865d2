# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU is served by the build's code: the decision, with stand-ins for GPUs."""

from __future__ import annotations

import pytest
import torch

import mdft_fast
from mdft_fast.ops import _gpu_code, _library
from mdft_fast.ops._gpu_code import runs_on, why_unusable

EARLIER = ["80-real", "90a-real"]
WHOLE = ["75-real", "80-real", "86-real", "89-real", "90-real", "100-real", "120"]


@pytest.mark.parametrize(
    ("built", "good", "bad"),
    [
        (EARLIER, [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 0), (7, 5), (10, 0), (12, 0)]),
        (WHOLE, [(7, 5), (8, 7), (9, 0), (10, 3), (12, 0), (12, 1), (13, 0)], [(7, 0), (6, 1)]),
        (["86-real"], [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (["90a-real", "80"], [(8, 0), (9, 0), (10, 0), (12, 0)], [(7, 5)]),  # through PTX
        (["80-virtual"], [(8, 0), (12, 0)], [(7, 5)]),
        (["90a-virtual", "90a"], [(9, 0)], [(8, 0), (10, 0)]),
        (["100f-real"], [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        (["native", ""], [], [(8, 0)]),
    ],
)
def test_which_gpus_a_build_serves(
    built: list[str], good: list[tuple[int, int]], bad: list[tuple[int, int]]
) -> None:
    assert [runs_on(built, gpu) for gpu in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


def test_one_major_version_is_one_cuda() -> None:
    assert why_unusable("13.1.80", "13.0") == ""
    assert why_unusable(None, "13.0") == ""
    assert "is of CUDA 12.8.93, this torch of CUDA 13.0" in why_unusable("12.8.93", "13.0")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 and an H100 beside a build for others than the T4."""
    seen = [("Tesla T4", (7, 5)), ("H100", (9, 0))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: seen[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: seen[index][1])
    monkeypatch.setattr(_gpu_code, "built_for", lambda: ("13.0", EARLIER))
    monkeypatch.setattr(_gpu_code, "_found", {})
    monkeypatch.setitem(_library._missing, "cuda", "")
    monkeypatch.setattr(_library, "_warned", set())


WORDS = (
    "Tesla T4 has compute capability 7.5, built were 80-real 90a-real; install with "
    "MDFT_CUDA_ARCHITECTURES=75"
)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_without_code_falls_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDFT_STRICT", "0")
    for device in ("cuda", "cuda:0"):
        monkeypatch.setattr(_library, "_warned", set())
        with pytest.warns(mdft_fast.MdftFallbackWarning) as warned:
            assert not _library.native("merge", torch.device(device), torch.float32)
        assert WORDS in str(warned[0].message)
    assert _library.native("merge", torch.device("cuda:1"), torch.float32)
    assert mdft_fast.kernels()["cuda"] == f"cuda, reference (cuda:0: {WORDS})"


@pytest.mark.usefixtures("gpus")
def test_kernels_say_where_no_gpu_has_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert mdft_fast.kernels()["cuda"] == f"reference (cuda:0: {WORDS})"


def test_why_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library._load_cuda("") == "this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _library._load_cuda("libmdft_ops.so was not built") == "libmdft_ops.so was not built"
    monkeypatch.setattr(_library, "built_for", lambda: ("12.8", []))
    assert "is of CUDA 12.8, this torch of CUDA 13.0" in _library._load_cuda("")
