# SPDX-License-Identifier: Apache-2.0
"""Memory and the system: which pages of a mapped file come next, what is freed, what is free."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mdft_fast.arena import makes_fakes

Advice = Literal["needed", "done"]

# Linux's MADV_WILLNEED starts to read; MADV_COLD makes pages the first to go when memory is short.
# Both keep what the pages hold, mapped or not: MADV_DONTNEED would not.
_CODES = {"needed": 3, "done": 20}
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def advise(tensor: Tensor, what: Advice) -> None:
    """Advises on the whole pages inside a contiguous CPU tensor; does nothing elsewhere.

    A system that refuses the advice changes nothing but the speed.
    """
    madvise = _madvise()
    if madvise is None or tensor.device.type != "cpu" or makes_fakes():
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if end > start:
        madvise(start, end - start, _CODES[what])


@functools.cache
def return_freed_memory() -> None:
    """Lets this process give a freed tensor of a megabyte or more back to the system at once.

    glibc's malloc otherwise keeps freed blocks of up to 32 MB in heaps of its own, where smaller
    ones come to lie between them: a step of a small ViT took 593 MB in place of 189 that way.
    Costs a page fault for each 4 KiB of a new tensor: small models run at half their speed. Does
    nothing where malloc is another's, or MALLOC_MMAP_THRESHOLD_ in the environment has its say.
    """
    if sys.platform.startswith("linux") and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def trim_heaps() -> None:
    """Gives what malloc keeps of freed memory back to the system, once; glibc's malloc alone.

    Unlike :func:`return_freed_memory` it changes nothing for what is allocated next.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int], int] = function
    return call


def available_memory(device: torch.device) -> int:
    """Returns the bytes that are free: on the GPU, or for the process without swapping.

    Of a batch system or a container the tightest limit counts, of whatever group above.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = list(_left_in_groups(Path("/proc/self"), Path("/sys/fs/cgroup")))
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        rows = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(r for r in rows if r.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError, StopIteration):  # ulimit -v: schedulers set it
        rows = Path("/proc/self/limits").read_text().splitlines()
        limit = int(next(r for r in rows if r.startswith("Max address space")).split()[3])
        free.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE)
    return max(0, min(free, default=sys.maxsize))


# Names of limit and use, and of files' pages in memory.stat, which are given back at need.
_V2 = "memory.max", "memory.current", "inactive_file"
_V2_SOFT = "memory.high", "memory.current", "inactive_file"  # above it all but stands still
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _left_in_groups(process: Path, mounted: Path) -> Iterator[int]:
    """Yields what is left of each limit that a control group sets, from ours up to the root.

    Args:
        process: the folder that holds ``cgroup``: lines of number, controllers and path.
        mounted: where the groups are mounted; version 1 has a folder a controller there.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    # A container sees its own group at the root.
    places = [(mounted, "/", _V2), (mounted, "/", _V2_SOFT)]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            places += [(mounted, path, _V2), (mounted, path, _V2_SOFT)]
        elif "memory" in controllers.split(","):
            places.append((mounted / "memory", path, _V1))
            places.append((mounted / "memory", "/", _V1))
    seen = set()
    for root, path, names in places:
        group = root / path.strip("/")
        if ".." in group.parts:  # of another namespace: not to be seen from here
            continue
        for folder in (group, *group.parents):
            if (folder, names) not in seen and (folder == root or root in folder.parents):
                seen.add((folder, names))
                yield from _left_in(folder, *names)


def _left_in(folder: Path, limit: str, used: str, given_back: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, KeyError):  # no limit: "max", or no such file
        most = int((folder / limit).read_text())
        taken = int((folder / used).read_text())
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield most - taken + int({row[0]: row[1] for row in rows if len(row) == 2}[given_back])
