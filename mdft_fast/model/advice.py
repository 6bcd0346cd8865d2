# SPDX-License-Identifier: Apache-2.0
"""Tells the system which pages of a mapped file are needed next, and which are done with."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mdft_fast.layout import makes_fakes

Advice = Literal["needed", "done"]

# Linux's MADV_WILLNEED starts to read; MADV_COLD makes pages the first to go when memory is short.
# Both keep what the pages hold, mapped or not: MADV_DONTNEED would not.
_CODES = {"needed": 3, "done": 20}


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
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int], int] = function
    return call
