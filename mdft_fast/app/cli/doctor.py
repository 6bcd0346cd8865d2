# SPDX-License-Identifier: Apache-2.0
"""What ``mdft doctor`` finds out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time

_EXTRAS = {"timm": ("timm",), "clip": ("open_clip", "torchvision"),
           "demo": ("sklearn", "matplotlib"), "analysis": ("scipy",)}  # fmt: skip
_PACKAGES = ("numpy", "safetensors", "pydantic")


def findings() -> dict[str, str]:
    """Returns what is installed and what it can use, a line an item."""
    import torch

    import mdft_fast
    from mdft_fast.app.demo import default_folder

    return {
        "mdft_fast": mdft_fast.__version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "kernels": ", ".join(f"{where}: {what}" for where, what in mdft_fast.kernels().items()),
        **_native(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "gpu": _gpus(),
        "extras": ", ".join(f"{name}: {_extra(modules)}" for name, modules in _EXTRAS.items()),
        "demo pool": _demo(),
        "cache": str(default_folder().parent),
    }


def self_test() -> tuple[bool, str]:
    """Runs ``merge`` on 4 M elements and compares it with the reference in float64.

    Returns:
        Whether it is right, and the words for it.
    """
    import torch

    from mdft_fast.arena import Layout
    from mdft_fast.ops import merge
    from mdft_fast.reference import merge as exact_merge

    count = 1 << 22
    generator = torch.Generator().manual_seed(0)
    base, deltas = (
        torch.randn(count, generator=generator),
        torch.randn(4, count, generator=generator),
    )
    coefficients = torch.full((4, 1), 0.3)
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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _native() -> dict[str, str]:
    try:
        from mdft_fast import _native
    except ImportError as error:
        return {"native": f"absent ({error}); operators run in plain torch"}
    info, features = _native.build_info(), _native.cpu_features()
    cuda = "without CUDA"
    if info["nvcc_version"]:
        cuda = f"nvcc {info['nvcc_version']}, {' '.join(info['cuda_architectures'])}"
    built = (info["compiler"], info["build_type"], f"commit {info['commit'] or 'unknown'}", cuda)
    return {
        "native": ", ".join(built),
        "cpu": " ".join(name for name, there in features.items() if there) or "no known features",
    }


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch sees"
    return ", ".join(
        f"{torch.cuda.get_device_name(i)}, "
        f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    )


def _extra(modules: tuple[str, ...]) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"needs {' '.join(absent)}" if absent else "yes"


def _demo() -> str:
    from mdft_fast.app.demo import default_folder, is_finished

    folder = default_folder()
    return f"{folder}" if is_finished(folder) else "not built yet; mdft demo builds it"
