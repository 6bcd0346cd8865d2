# SPDX-License-Identifier: Apache-2.0
"""The built libraries: tied to no version of torch, and honest about how they were built."""

import platform
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mdft_fast
from mdft_fast import _native
from tests.scripts import script

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = sorted((Path(mdft_fast.__file__).parent / "lib").glob("*.so"))

QUIET_LOG = """\
ptxas info    : Compiling entry function 'merge_kernel' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
SPILLING_LOG = """\
ptxas info    : Compiling entry function 'merge_kernel' for 'sm_90a'
    16 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
"""


@pytest.fixture(scope="module")
def gates() -> ModuleType:
    return script("scripts/check_native.py")


def test_the_operators_were_built() -> None:
    assert "libmdft_ops.so" in [library.name for library in LIBRARIES]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_library_needs_only_stable_symbols(gates: ModuleType, library: Path) -> None:
    assert gates.check(library) == []


def test_the_gate_sees_unstable_symbols(gates: ModuleType) -> None:
    libtorch_python = Path(torch.__file__).parent / "lib/libtorch_python.so"
    assert any(name.startswith("_ZN2at") for name in gates.check(libtorch_python))


def test_the_gate_sees_spills_and_a_log_that_says_nothing(
    gates: ModuleType, tmp_path: Path
) -> None:
    log = tmp_path / "gpu_cuda.cu.o.log"
    log.write_text(QUIET_LOG, encoding="utf-8")
    assert gates.check(log) == []
    log.write_text(QUIET_LOG + SPILLING_LOG, encoding="utf-8")
    assert gates.check(log) == [
        "merge_kernel (sm_90a): 16 bytes spill stores, 20 bytes spill loads"
    ]
    log.write_text("nothing of interest", encoding="utf-8")
    assert "no report" in gates.check(log)[0]


def test_build_info_names_what_was_used() -> None:
    info = _native.build_info()
    assert info["torch_target_version"] == "0x020b000000000000"
    assert "-Werror" in info["flags"]
    assert str(ROOT) not in str(info)
    with_cuda = "libmdft_ops_cuda.so" in [library.name for library in LIBRARIES]
    assert bool(info["cuda_architectures"]) == with_cuda
    assert (info["nvcc_version"] is not None) == with_cuda


@pytest.mark.skipif(platform.system() != "Linux", reason="reads the kernel's own list")
def test_cpu_features_agree_with_the_kernel() -> None:
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert _native.cpu_features() == {
        name: name in words for name in ("avx2", "fma", "f16c", "avx512f", "avx512_bf16")
    }
