# SPDX-License-Identifier: Apache-2.0
"""What ``mdft doctor`` finds out. Importing this loads torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from mdft_fast import reference
from mdft_fast.app.demo import default_folder, is_finished
from mdft_fast.app.running import version_of
from mdft_fast.arena import TILE, Layout
from mdft_fast.errors import MdftError, need
from mdft_fast.ops import debiased_entropy_loss, kernels, merge, merge_dots
from mdft_fast.version import __version__

_DISTRIBUTION = "mdft-fast"


def findings() -> dict[str, str]:
    """Returns what is installed and what it can use, a line an item."""
    return {
        "mdft_fast": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}",
        **_dependencies(),
        "kernels": ", ".join(f"{device}: {loops}" for device, loops in kernels().items()),
        **_native(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "gpu": _gpus(),
        **_folders(),
    }


def _folders() -> dict[str, str]:
    try:
        demo = default_folder()
    except MdftError as error:  # no home
        return {"cache": str(error)}
    built = str(demo) if is_finished(demo) else "not built yet; mdft demo builds it"
    return {"demo pool": built, "cache": str(demo.parent)}


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


def self_tests() -> Iterator[tuple[str, bool, str]]:
    """Runs every operator on each device, and compares it with the reference in float64.

    Yields:
        The device, whether all is right there, and the words for it.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in (torch.device("cpu"), *(torch.device("cuda", i) for i in range(gpus))):
        try:
            words, good = _test_merge(device)
            wrong = [] if good else ["merge"]
            wrong += [op for op, right in _test_others(device).items() if not right]
        except (RuntimeError, MdftError) as error:  # a launch without code, say
            yield str(device), False, f"FAILS: {str(error).splitlines()[0]}"
            continue
        right = f"{words}; merge_dots and debiased_entropy are right"
        said = f"{', '.join(wrong)} gives WRONG numbers" if wrong else right
        yield str(device), not wrong, said


def _test_merge(device: torch.device) -> tuple[str, bool]:
    """Merges 4 M elements; returns the rate in words, and whether the numbers are right."""
    count = 1 << 22
    base, deltas = _drawn(count).to(device), _drawn(4, count).to(device)
    coefficients = torch.linspace(0.1, 0.4, 4, dtype=torch.float32, device=device)[:, None]
    layout = Layout.single(count)
    merge(base, deltas, coefficients, layout)  # the first call touches fresh memory
    _wait(device)
    started = time.perf_counter()
    merged = merge(base, deltas, coefficients, layout)
    _wait(device)
    seconds = time.perf_counter() - started
    plan = layout.plan(device)
    wide = base.double(), deltas.double(), coefficients.double()
    exact = reference.merge(*wide, plan, torch.float64)
    magnitude = reference.merge(wide[0].abs(), wide[1].abs(), wide[2].abs(), plan, torch.float64)
    # five terms summed and once rounded: six roundings at most
    good = _within(merged, exact, 6 * magnitude)
    rate = 4 * count * 6 / seconds / 1e9  # bytes: base, 4 task vectors, the result
    words = f"merge of 4 x {count:,} elements is right"
    return f"{words}, {1000 * seconds:.1f} ms, {rate:.1f} GB/s", good


def _test_others(device: torch.device) -> dict[str, bool]:
    """Returns for each other operator whether its numbers, and its backward's, are right."""
    count = 64 * TILE
    grad, deltas = _drawn(count).abs().to(device), _drawn(4, count).abs().to(device)
    exact = reference.merge_dots(
        [grad.double()], deltas.double(), Layout.single(count).plan(device)
    )
    # no two terms cancel; a tile's are summed in float32, in whatever order, and rounded once more
    dots = _within(merge_dots(grad, deltas), exact, (TILE + 1) * exact)

    logits, teachers = _drawn(16, 10).to(device), 4 * _drawn(16, 10).to(device)
    found = [
        torch.cat([result.loss.detach(), torch.autograd.grad(result.loss.sum(), z)[0].flatten()])
        for z, result in (
            (z, loss([z], [teachers.to(z.dtype)]))
            for loss, dtype in (
                (debiased_entropy_loss, torch.float32),
                (reference.debiased_entropy, torch.float32),
                (reference.debiased_entropy, torch.float64),
            )
            for z in (logits.to(dtype).requires_grad_(),)
        )
    ]
    got, eager, exact = (x.double() for x in found)
    # exp and log have no bound: twice eager torch's error, and a rounding
    most = 2 * (eager - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    return {"merge_dots": dots, "debiased_entropy": bool(((got - exact).abs() <= most).all())}


def _drawn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _within(got: torch.Tensor, exact: torch.Tensor, roundings: torch.Tensor) -> bool:
    return bool(((got - exact).abs() <= torch.finfo(torch.float32).eps * roundings).all())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _native() -> dict[str, str]:
    try:
        native = need("mdft_fast._native")
    except MdftError as error:
        folder = Path(__file__).parents[2]
        words = f"absent from {folder} ({error.__cause__}); operators run in plain torch"
        return {"native": f"{words}; pip install builds it"}
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
    return ", ".join(
        f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
        f"{gpu.major}.{gpu.minor}"
        for gpu in gpus
    )
