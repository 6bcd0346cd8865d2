# SPDX-License-Identifier: Apache-2.0
"""What ``mdft doctor`` finds out. Importing this loads torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time

import torch

from mdft_fast.app.demo import default_folder, is_finished
from mdft_fast.app.running import version_of
from mdft_fast.arena import Layout
from mdft_fast.errors import MdftError, need
from mdft_fast.ops import kernels, merge
from mdft_fast.reference import merge as exact_merge
from mdft_fast.version import __version__

_DISTRIBUTION = "mdft-fast"


def findings() -> dict[str, str]:
    """Returns what is installed and what it can use, a line an item."""
    demo = default_folder()
    return {
        "mdft_fast": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}",
        **_dependencies(),
        "kernels": ", ".join(f"{device}: {loops}" for device, loops in kernels().items()),
        **_native(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "gpu": _gpus(),
        "demo pool": f"{demo}" if is_finished(demo) else "not built yet; mdft demo builds it",
        "cache": str(demo.parent),
    }


def _dependencies() -> dict[str, str]:
    """Returns versions of what the installed package declares, and what its extras lack."""
    try:
        extras = importlib.metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {"packages": f"unknown: {_DISTRIBUTION} is not installed, only on the path"}
    states = []
    for extra in extras:
        absent = [name for name in _packages(extra) if version_of(name) is None]
        if extra != "dev":  # for work on the package, not for its use
            states.append(f"{extra}: {'needs ' + ' '.join(absent) if absent else 'yes'}")
    return {
        "packages": ", ".join(f"{name} {version_of(name) or 'absent'}" for name in _packages()),
        "extras": ", ".join(states),
    }


def _packages(extra: str = "") -> list[str]:
    """Returns what the package needs, or what an extra adds, with the extras that it takes in."""
    names = []
    for requirement in importlib.metadata.requires(_DISTRIBUTION) or ():
        package, _, condition = requirement.partition(";")
        if extra == "".join(re.findall(r"extra == ['\"]([\w-]+)", condition)):
            name, *inner = re.findall(r"[\w.-]+", package)
            if name == _DISTRIBUTION:
                names += [part for other in inner for part in _packages(other)]
            else:
                names.append(name)
    return names


def self_test() -> tuple[bool, str]:
    """Runs ``merge`` on 4 M elements and compares it with the reference in float64.

    Returns:
        Whether it is right, and the words for it.
    """
    count = 1 << 22
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, generator=generator)
    deltas = torch.randn(4, count, generator=generator)
    coefficients = torch.linspace(0.1, 0.4, 4)[:, None]
    layout = Layout.single(count)
    merge(base, deltas, coefficients, layout)  # the first call touches fresh memory
    started = time.perf_counter()
    merged = merge(base, deltas, coefficients, layout)
    seconds = time.perf_counter() - started
    plan = layout.plan(torch.device("cpu"))
    wide = base.double(), deltas.double(), coefficients.double()
    exact = exact_merge(*wide, plan, torch.float64)
    magnitude = exact_merge(wide[0].abs(), wide[1].abs(), wide[2].abs(), plan, torch.float64)
    # five terms summed and once rounded: six roundings at most
    good = bool(((merged - exact).abs() <= 6 * torch.finfo(torch.float32).eps * magnitude).all())
    rate = 4 * count * 6 / seconds / 1e9  # bytes: base, 4 task vectors, the result
    words = f"merge of 4 x {count:,} elements is right" if good else "merge gives WRONG numbers"
    return good, f"{words}, {1000 * seconds:.1f} ms, {rate:.1f} GB/s"


def _native() -> dict[str, str]:
    try:
        native = need("mdft_fast._native")
    except MdftError as error:
        return {"native": f"absent ({error.__cause__}); operators run in plain torch"}
    info, features = native.build_info(), native.cpu_features()
    cuda = "without CUDA"
    if info["nvcc_version"]:
        cuda = f"nvcc {info['nvcc_version']}, {' '.join(info['cuda_architectures'])}"
    built = (info["compiler"], info["build_type"], f"commit {info['commit'] or 'unknown'}", cuda)
    return {
        "native": ", ".join(built),
        "cpu": " ".join(name for name, there in features.items() if there) or "no known features",
    }


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
