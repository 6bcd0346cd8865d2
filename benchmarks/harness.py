# SPDX-License-Identifier: Apache-2.0
"""A race: contestants take turns, equal answers are a condition, and the load is looked at first.

On CUDA turns are timed with events and synchronised; that path has never run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.running import environment as system

COPY_BYTES = 256 << 20  # of the copied buffer: many times a CPU's last-level cache, or a GPU's L2
FLUSH_BYTES = 64 << 20  # twice the last-level cache of the CPU at hand; a GPU's L2 is 50 MiB
KEPT_FREE_BYTES = 4 << 30  # for whatever else the machine does
OURS = "mdft_fast"


class Busy(RuntimeError):
    """The machine does something else: a time taken now would say little."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One race.

    Attributes:
        op: the operator's name.
        name: sizes, dtype, and what else sets this case apart.
        ours: what this package does.
        rivals: name -> what else a user could write today. A name that begins with
            "torch.compile" may fail, and so may who runs out of memory: the reason is recorded.
        check: raises AssertionError unless our answer (first) and a rival's are equal.
        bytes_moved: what must cross the memory bus, read and written; None: not memory bound.
        calls: in one turn, whose time is their mean. More than one: the caches are warm for most.
        left_out: rivals that cannot run here, and why.
    """

    op: str
    name: str
    ours: Callable[[], Any]
    rivals: Mapping[str, Callable[[], Any]]
    check: Callable[[Any, Any], None]
    bytes_moved: int | None = None
    calls: int = 1
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


def memory_available() -> int:
    """Returns the bytes that the system could give us now."""
    return 1024 * (_status("MemAvailable", "/proc/meminfo") or 0)


def limit_memory() -> None:
    """Lets an allocation fail where the system would end the process, or a neighbor's."""
    limit = max(memory_available() - KEPT_FREE_BYTES, KEPT_FREE_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def load() -> tuple[float, bool]:
    """Returns the load average of the last minute, and whether it is more than our own."""
    average = os.getloadavg()[0]
    return average, average > torch.get_num_threads() + 0.5


def agree(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Raises AssertionError unless ``|ours - theirs| <= tolerance * |ours|`` (Euclidean norms).

    In pieces: a float64 copy of a whole arena would not fit beside it.
    """
    assert ours.shape == theirs.shape, f"shapes {list(ours.shape)} and {list(theirs.shape)}"
    wrong = size = 0.0
    pairs = (x.detach().reshape(-1).split(1 << 22) for x in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        wrong += float((a.double() - b.double()).square().sum())
        size += float(a.double().square().sum())
    off = (wrong / size) ** 0.5 if size else wrong
    assert off <= tolerance, f"answers differ by {off:.3g} of their size, allowed {tolerance:.3g}"


def environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device and threads, with the commit of this checkout, where it is one.

    The package's own says the commit that its native code was built from.
    """
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    here = {"commit": asked.stdout.strip()} if asked.returncode == 0 else {}
    return system.environment(device) | here


class Machine:
    """Times calls on one device, with cold caches."""

    def __init__(self, device: torch.device, copy_bytes: int = COPY_BYTES) -> None:
        self.device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._from = torch.zeros(copy_bytes // 4, device=device)
        self._to = torch.zeros_like(self._from)

    def copy(self) -> None:
        """Reads a large buffer and writes another."""
        self._to.copy_(self._from)

    def copy_rate(self) -> float:
        """Returns the bytes per second, read and written, of one copy."""
        return 2 * self._from.nbytes / self.seconds(self.copy)

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """Returns the mean time of some calls, the first with caches that hold something else."""
        self._flush.add_(1)
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / calls
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started) / calls

    def peak(self, call: Callable[[], Any]) -> tuple[Any, float | None]:
        """Calls once; returns the answer, and the MB that the call needed beyond what was there."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before, answer = torch.cuda.memory_allocated(), call()
            return answer, (torch.cuda.max_memory_allocated() - before) / 1e6
        _give_back()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of resident memory
        before_kb = _status("VmRSS")
        answer = call()
        after_kb = _status("VmHWM")
        return answer, (after_kb - before_kb) * 1024 / 1e6 if before_kb and after_kb else None


def _status(key: str, file: str = "/proc/self/status") -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        rows = Path(file).read_text().splitlines()
        return int(next(row for row in rows if row.startswith(key)).split()[1])
    return None


def race(
    case: Case,
    machine: Machine,
    *,
    rounds: int,
    allow_busy: bool = False,
    benchmark: Any = None,
) -> dict[str, Any]:
    """Lets our operator and its rivals take turns; returns what was measured, as JSON values.

    Args:
        case: who runs.
        machine: where.
        rounds: how often. Each round flushes the caches before every turn and begins with
            another contestant; ratios are taken within a round.
        allow_busy: measures on a busy machine too; the result says so.
        benchmark: pytest-benchmark's fixture: it then times our turns and keeps the result.

    Raises:
        AssertionError: if a rival's answer is not ours: a wrong answer is not timed.
        Busy: if the machine is busy with something else.
    """
    average, busy = load()
    if busy and not allow_busy:
        threads = f"{torch.get_num_threads()} threads of our own"
        raise Busy(f"load average {average:.1f} with {threads}: wait, or pass --allow-busy")
    calls, unavailable, peaks = _meet(case, machine)
    times, rates = _take_turns(case, machine, calls, rounds, benchmark)
    result = {
        "op": case.op,
        "case": case.name,
        "rounds": rounds,
        "calls_per_turn": case.calls,
        "bytes_moved": case.bytes_moved,
        "load_average": round(average, 2),
        "busy": busy or load()[1],
        "copy_gb_per_s": round(statistics.median(rates) / 1e9, 2) if rates else None,
        "contestants": {
            name: _summary(case, times, name, rates) | {"peak_mb": peaks[name]} for name in calls
        },
        "does_not_work_here": unavailable,
    }
    if benchmark is not None:
        benchmark.extra_info.update(result)
    return result


def _take_turns(
    case: Case, machine: Machine, calls: Mapping[str, Any], rounds: int, benchmark: Any
) -> tuple[dict[str, list[float]], list[float]]:
    """Returns the times of each contestant and the rates of a copy, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    rates: list[float] = []

    def turns(names: list[str]) -> None:
        for name in names:
            times[name].append(machine.seconds(calls[name], case.calls))
        if case.bytes_moved:
            rates.append(machine.copy_rate())

    names = list(calls)
    if benchmark is None:
        for i in range(rounds):
            first = i % len(names)
            turns(names[first:] + names[:first])
        return times, rates

    def setup() -> None:
        turns([name for name in names if name != OURS])
        machine.seconds(lambda: None)  # flushes

    def ours() -> None:
        for _ in range(case.calls):
            case.ours()

    benchmark.group = f"{case.op} {case.name}"
    benchmark.pedantic(ours, setup=setup, rounds=rounds, iterations=1)
    times[OURS] = [t / case.calls for t in benchmark.stats.stats.data]
    return times, rates


def _meet(case: Case, machine: Machine) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Calls everyone twice, the second time for the memory; compares the answers."""
    calls: dict[str, Any] = {OURS: case.ours}
    unavailable = dict(case.left_out)
    case.ours()
    ours, peak = machine.peak(case.ours)
    ours = _copy(ours)  # a rival may write to the same buffer
    peaks = {OURS: peak}
    for name, call in case.rivals.items():
        try:
            call()
            theirs, peak = machine.peak(call)
        except Exception as error:
            if not (name.startswith("torch.compile") or _out_of_memory(error)):
                raise
            unavailable[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if name in unavailable:  # here nothing holds the failed call's frames any more
            _give_back()
            continue
        try:
            case.check(ours, theirs)
        except AssertionError as error:
            raise AssertionError(f"{case.op}, {case.name}: {name}: {error}") from None
        calls[name], peaks[name] = call, peak
        del theirs
    return calls, unavailable, peaks


def _give_back() -> None:
    """Returns what earlier calls left behind, and glibc kept, to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _out_of_memory(error: Exception) -> bool:
    words = ("allocate memory", "create a primitive", "CUDA out of memory")  # oneDNN's: 2nd
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _copy(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer.detach().clone()
    if isinstance(answer, list | tuple):
        return [_copy(x) for x in answer]
    return answer


def _summary(
    case: Case, times: Mapping[str, list[float]], name: str, rates: list[float]
) -> dict[str, Any]:
    mine, ours = times[name], times[OURS]
    found: dict[str, Any] = {
        "median_ms": _ms(statistics.median(mine)),
        "iqr_ms": [_ms(x) for x in _quartiles(mine)],
        "over_ours": round(statistics.median(a / b for a, b in zip(mine, ours, strict=True)), 3),
    }
    if case.bytes_moved:
        shares = [case.bytes_moved / t / r for t, r in zip(mine, rates, strict=True)]
        found["gb_per_s"] = round(case.bytes_moved / statistics.median(mine) / 1e9, 2)
        found["share_of_copy"] = round(statistics.median(shares), 3)
    return found


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive")[::2])


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")
