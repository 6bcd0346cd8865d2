# SPDX-License-Identifier: Apache-2.0
"""Memory and the system: which pages of a mapped file come next, what is freed, what is free."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
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
    """Returns the bytes that are free: on the GPU, or for the process without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    with contextlib.suppress(OSError, StopIteration):
        rows = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(r for r in rows if r.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # a container's: "max", or bytes
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(kept["inactive_file"]))  # files' pages: given back at need
    return min(free) if free else sys.maxsize
