# SPDX-License-Identifier: Apache-2.0
"""Forked children: a warm process each, that may be killed, hang or take memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

HANG_S = 20.0
MEMORY = 2 << 30  # bytes beyond what the parent has


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        signal: what killed it; 0: it ended by itself.
        said: the JSON values that it told its parent, in order.
        hung: whether it said nothing for ``HANG_S`` and was killed for that.
        memory: bytes at its peak, the parent's own among them.
    """

    signal: int
    said: list[Any]
    hung: bool
    memory: int


def child(body: Callable[[Callable[[Any], None]], None], patience: float = HANG_S) -> Ended:
    """Runs a function in a forked child, which tells its parent JSON values."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(body, writing)
    os.close(writing)
    said, hung = _listen(reading, pid, patience)
    _, status, usage = os.wait4(pid, 0)
    lines = [json.loads(line) for line in said.split(b"\n")[:-1]]
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(killed, lines, hung, 1024 * usage.ru_maxrss)


def _live(body: Callable[[Callable[[Any], None]], None], writing: int) -> None:
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    with contextlib.suppress(ValueError, OSError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    # PyTorch makes the pool that the fork lost anew at the first use; two threads that come to
    # it at once abort ("Invalid thread pool").
    torch.set_num_threads(torch.get_num_threads())
    try:
        body(lambda value: (os.write(writing, json.dumps(value).encode() + b"\n"), None)[1])
    finally:
        os._exit(0)


def _listen(reading: int, pid: int, patience: float) -> tuple[bytes, bool]:
    said, last = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([reading], [], [], 1.0)
        if ready:
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            said, last = said + piece, time.monotonic()
        elif time.monotonic() - last > patience:
            os.kill(pid, signal.SIGKILL)
            os.close(reading)
            return said, True
    os.close(reading)
    return said, False
