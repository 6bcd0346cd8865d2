# SPDX-License-Identifier: Apache-2.0
"""A race: contestants take turns, equal answers are a condition, and the load is looked at first.

The one implementation of a race: run.py and ``pytest benchmarks`` both hold theirs here.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.machine import Machine, give_back, load
from mdft_fast.app.running import environment

OURS = "mdft_fast"


class Busy(RuntimeError):
    """The machine does something else: a time taken now would say little."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Who races.

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


class Compete(Protocol):
    """The fixture of ``pytest benchmarks`` that holds a race and hands it to pytest-benchmark."""

    def __call__(self, case: Case, *, rounds: int) -> None:
        """Holds one race."""


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


def origin(command: str, device: torch.device) -> dict[str, Any]:
    """Returns where a result comes from: date, command, versions, device, threads, commit.

    The commit is of this checkout, where it is one: the package's own says what its native code
    was built from.
    """
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        **environment(device),
        **({"commit": head.stdout.strip()} if head.returncode == 0 else {}),
    }


@dataclasses.dataclass(frozen=True)
class Race:
    """A race that is over.

    Attributes:
        case: who ran.
        seconds: contestant -> time of each of its turns, round by round, ours first.
        rates: bytes per second of a copy, round by round; empty where the case is not memory bound.
        peak_mb: contestant -> what a call needed beyond what was there.
        unavailable: who could not run, and why.
        load: load average before the start.
        busy: whether the machine did something else, before or after.
    """

    case: Case
    seconds: Mapping[str, list[float]]
    rates: list[float]
    peak_mb: Mapping[str, float | None]
    unavailable: Mapping[str, str]
    load: float
    busy: bool

    def summary(self) -> dict[str, Any]:
        """Returns what was measured, as JSON values."""
        case, rates = self.case, self.rates
        return {
            "op": case.op,
            "case": case.name,
            "rounds": len(self.seconds[OURS]),
            "calls_per_turn": case.calls,
            "bytes_moved": case.bytes_moved,
            "load_average": round(self.load, 2),
            "busy": self.busy,
            "copy_gb_per_s": round(statistics.median(rates) / 1e9, 2) if rates else None,
            "contestants": {name: self._contestant(name) for name in self.seconds},
            "does_not_work_here": dict(self.unavailable),
        }

    def _contestant(self, name: str) -> dict[str, Any]:
        turns, moved = self.seconds[name], self.case.bytes_moved
        ratios = [a / b for a, b in zip(turns, self.seconds[OURS], strict=True)]
        summary: dict[str, Any] = {
            "median_ms": _ms(statistics.median(turns)),
            "iqr_ms": [_ms(x) for x in _quartiles(turns)],
            "over_ours": round(statistics.median(ratios), 3),
            "over_ours_iqr": [round(x, 3) for x in _quartiles(ratios)],
        }
        if moved:
            shares = [moved / t / r for t, r in zip(turns, self.rates, strict=True)]
            summary["gb_per_s"] = round(moved / statistics.median(turns) / 1e9, 2)
            summary["share_of_copy"] = round(statistics.median(shares), 3)
        return summary | {"peak_mb": self.peak_mb[name]}


def race(case: Case, machine: Machine, *, rounds: int, allow_busy: bool = False) -> Race:
    """Lets our operator and its rivals take turns.

    Args:
        case: who runs.
        machine: where.
        rounds: how often. Each round flushes the caches before every turn and begins with
            another contestant; ratios are taken within a round.
        allow_busy: measures on a busy machine too; the result says so.

    Raises:
        AssertionError: if a rival's answer is not ours: a wrong answer is not timed.
        Busy: if the machine is busy with something else.
    """
    average, busy = load()
    if busy and not allow_busy:
        threads = f"{torch.get_num_threads()} threads of our own"
        raise Busy(f"load average {average:.1f} with {threads}: wait, or pass --allow-busy")
    calls, unavailable, peaks = _meet(case, machine)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rates: list[float] = []
    for order in orders(list(calls), rounds):
        for name in order:
            seconds[name].append(machine.seconds(calls[name], case.calls))
        if case.bytes_moved:
            rates.append(machine.copy_rate())
    return Race(case, seconds, rates, peaks, unavailable, average, busy or load()[1])


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yields who comes after whom, round by round: each begins with another contestant."""
    for i in range(rounds):
        first = i % len(names)
        yield [*names[first:], *names[:first]]


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
            give_back()
            continue
        try:
            case.check(ours, theirs)
        except AssertionError as error:
            raise AssertionError(f"{case.op}, {case.name}: {name}: {error}") from None
        calls[name], peaks[name] = call, peak
        del theirs
    return calls, unavailable, peaks


def _out_of_memory(error: Exception) -> bool:
    words = ("allocate memory", "create a primitive", "CUDA out of memory")  # oneDNN's: 2nd
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _copy(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer.detach().clone()
    if isinstance(answer, list | tuple):
        return [_copy(x) for x in answer]
    return answer


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive")[::2])


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")
