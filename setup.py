# SPDX-License-Identifier: Apache-2.0
"""A shim: lets CMake build the native libraries when setuptools asks for extensions.

Sources and flags are in CMakeLists.txt, everything else in pyproject.toml. Environment variables:
``MDFT_WITH_CUDA=0/1`` overrides the choice by nvcc's presence, ``MDFT_CUDA_ARCHITECTURES`` (such as
``75;90``) the choice of GPUs, ``CMAKE_ARGS`` is passed on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def package_folder(name: str) -> Path | None:
    """Finds a package without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def program(name: str, folder_constant: str) -> str:
    """Finds cmake or ninja: the Python package's own, else the one on the PATH."""
    if importlib.util.find_spec(name):
        return str(Path(getattr(importlib.import_module(name), folder_constant)) / name)
    return shutil.which(name) or name


def cmake_choices(package: Path, editable: bool) -> list[str]:
    """Returns the -D options; all of them every time, so that none survives in CMake's cache."""
    pybind11 = package_folder("pybind11")
    return [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={program('ninja', 'BIN_DIR')}",
        f"-DMDFT_TORCH_ROOT={package_folder('torch') or ''}",
        f"-DMDFT_PYBIND11_INCLUDE={pybind11 / 'include' if pybind11 else ''}",
        f"-DMDFT_PACKAGE_DIR={package}",
        f"-DMDFT_WITH_CUDA={os.environ.get('MDFT_WITH_CUDA') or 'AUTO'}",
        f"-DMDFT_CUDA_ARCHITECTURES={os.environ.get('MDFT_CUDA_ARCHITECTURES', '')}",
        f"-DMDFT_BUILD_EMULATED={'ON' if editable else 'OFF'}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


class CMakeBuild(build_ext):
    """Builds every target of CMakeLists.txt, into the source tree or into the wheel."""

    def run(self) -> None:
        """Configures and builds; a second run compiles only what changed."""
        editable = bool(self.inplace or getattr(self, "editable_mode", False))
        package = (ROOT if editable else Path(self.build_lib).resolve()) / "mdft_fast"
        kind = "editable" if editable else "cmake-wheel"
        build = ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}"
        cmake = program("cmake", "CMAKE_BIN_DIR")
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += cmake_choices(package, editable)
        known = (build / "CMakeCache.txt").exists()
        done = subprocess.run(configure, check=False).returncode == 0
        if not done and known:  # it may be of another place, compiler or machine
            print(f"mdft_fast: {build} does not fit any more; building anew", flush=True)
            shutil.rmtree(build)
            done = subprocess.run(configure, check=False).returncode == 0
        if not done or subprocess.run([cmake, "--build", str(build)], check=False).returncode != 0:
            raise CompileError("mdft_fast: the native build failed; cmake's words above say why")

    def get_outputs(self) -> list[str]:
        """Names nothing: CMake has put the libraries where setuptools collects them."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Maps nothing: an editable install uses the source tree as it is."""
        return {}


setup(
    ext_modules=[Extension("mdft_fast._native", sources=[])],  # makes the wheel a platform's own
    cmdclass={"build_ext": CMakeBuild},
    options={"build": {"build_base": "build/wheel"}},  # emptied by mdft_build.build_wheel
)
