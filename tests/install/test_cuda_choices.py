# SPDX-License-Identifier: Apache-2.0
"""What the build chooses of nvcc, torch and GPUs: cmake/cuda.cmake, with stand-ins for programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KNOWN = "sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120"


def program(path: Path, *answers: tuple[str, str]) -> Path:
    """Writes a program that answers to its first argument."""
    cases = "".join(f"{option}) echo '{answer}';;" for option, answer in answers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ncase "$1" in {cases} *) exit 1;; esac\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def ask(
    tmp_path: Path,
    call: str,
    *,
    release: str = "13.0",
    known: str = KNOWN,
    torch_cuda: str = "'13.0'",
    gpus: str = "",
    emulated: str = "OFF",
) -> str:
    """Returns what a function of cuda.cmake gives."""
    nvcc = program(
        tmp_path / "nvcc", ("--version", f"release {release}, V1"), ("--list-gpu-code", known)
    )
    smi = [("--query-gpu=compute_cap", gpus)] if gpus else []
    program(tmp_path / "bin/nvidia-smi", *smi)
    (tmp_path / "torch").mkdir(exist_ok=True)
    (tmp_path / "torch/version.py").write_text(f"cuda: Optional[str] = {torch_cuda}\n")
    (tmp_path / "ask.cmake").write_text(
        f'set(MDFT_NVCC "{nvcc}")\nset(MDFT_TORCH_ROOT "{tmp_path}/torch")\n'
        f"set(MDFT_BUILD_EMULATED {emulated})\n"
        f'include("{ROOT}/cmake/cuda.cmake")\n{call}\nmessage(STATUS "got=${{result}}")\n',
        encoding="utf-8",
    )
    cmake = Path(sys.executable).parent / "cmake"  # the environment's, where it has one
    command = str(cmake) if cmake.exists() else "cmake"
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [command, "-P", str(tmp_path / "ask.cmake")],
        capture_output=True, text=True, check=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    return done.stdout.partition("got=")[2].strip()


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, "75-real;80-real;86-real;89-real;90-real;100-real;120"),
        ({"known": "sm_70 sm_75 sm_80 sm_86 sm_89 sm_90"}, "75-real;80-real;86-real;89-real;90"),
        ({"gpus": "8.6"}, "86"),
        ({"gpus": "9.0\n7.5\n9.0", "emulated": "ON"}, "75-real;90"),
        ({"gpus": "12.0", "known": "sm_75 sm_80 sm_90"}, "75-real;80-real;90"),  # newer than nvcc
        ({"emulated": "ON"}, "90a-real;80"),  # PTX of 8.0: it runs on all from there on
    ],
)
def test_architectures(options: dict[str, str], chosen: str, tmp_path: Path) -> None:
    assert ask(tmp_path, "mdft_choose_architectures(result)", **options) == chosen


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, ""),
        ({"release": "13.2"}, ""),
        ({"release": "12.8"}, "nvcc must be of CUDA 13 as torch is (13.0), got 12.8"),
        ({"torch_cuda": "None"}, "this torch has no CUDA"),
    ],
)
def test_nvcc_is_compared_with_torch(options: dict[str, str], why: str, tmp_path: Path) -> None:
    assert ask(tmp_path, "mdft_why_no_cuda(result)", **options) == why


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("name", ["my code", "v1,2", "mdft (copy)", "it's", "a,b's [c] & (d)"])
def test_nvcc_hands_a_path_on_as_it_is(name: str, tmp_path: Path) -> None:
    given = f"-fmacro-prefix-map=/home/{name}/="
    text = name.replace("\\", "\\\\")
    escaped = ask(tmp_path, f'mdft_nvcc_words("-fmacro-prefix-map=/home/{text}/=" result)')
    (tmp_path / "a.cu").write_text("__global__ void k() {}\n")
    shown = tmp_path / "gcc"  # stands in for the compiler: shows what it is given
    shown.write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>" >&2; done\nexec gcc "$@"\n')
    shown.chmod(0o755)
    done = subprocess.run(
        ["nvcc", "-ccbin", str(shown), f"-Xcompiler={escaped}", "-arch=sm_80", "-c", "a.cu"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert f"<{given}>" in done.stderr
    assert done.returncode == 0
