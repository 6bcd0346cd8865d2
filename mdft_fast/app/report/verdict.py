# SPDX-License-Identifier: Apache-2.0
"""What a result says in words: gains, losses, and what cannot be told apart from noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mdft_fast.app.report.schema import Interval, Method, Result

_LEVEL = {1: "better than", 0: "level with", -1: "worse than"}  # by a comparison's sign
_NAMES: dict[Method, str] = {
    "task_arithmetic": "task arithmetic",
    "individual": "the individual models",
    "control": "the control without stage 1",
}
Z = 1.96  # standard deviations on either side of 95 % of a normal distribution


class Comparison(NamedTuple):
    """Two methods on the tasks that both were measured on, averages from 0 to 1.

    Attributes:
        first: average accuracy of the one.
        second: average accuracy of the other.
        low: lower end of the 95 % interval of ``first - second``.
        high: its upper end.
        tasks: how many tasks.
        by_task: task -> difference.
    """

    first: float
    second: float
    low: float
    high: float
    tasks: int
    by_task: dict[str, float]

    @property
    def difference(self) -> float:
        """``first - second``."""
        return self.first - self.second

    @property
    def sign(self) -> int:
        """1 better, -1 worse, 0 where the interval holds 0."""
        return (self.low > 0) - (self.high < 0)

    def words(self) -> str:
        """Returns the difference and its interval."""
        return f"{points(self.difference)} points, {interval(self.low, self.high)}"


def average(values: Iterable[float]) -> float:
    """Returns the mean of at least one value."""
    items = list(values)
    return math.fsum(items) / len(items)


def compare(result: Result, first: Method, second: Method) -> Comparison | None:
    """Compares two methods; None where no task has both.

    The interval is the bootstrap's where the result holds one; else that of two independent
    binomial samples, which is wider than a paired one would be.
    """
    a, b = result["accuracy"].get(first, {}), result["accuracy"].get(second, {})
    names = [task["name"] for task in result["pool"]["tasks"]]
    common = [name for name in names if name in a and name in b]
    if not common:
        return None
    by_task = {name: a[name] - b[name] for name in common}
    difference = average(by_task.values())
    low, high = _interval(result, first, second, common, difference)
    means = average(a[name] for name in common), average(b[name] for name in common)
    return Comparison(*means, low, high, len(common), by_task)


def _interval(
    result: Result, first: Method, second: Method, names: list[str], difference: float
) -> tuple[float, float]:
    known = result["intervals"]
    if (first, second) == ("specialized", "individual") and all(n in known for n in names):
        if "average" in known and len(known) == len(names) + 1:
            return known["average"]["low"], known["average"]["high"]
        # test sets are independent, so variances add; each side apart, intervals may be skewed
        below = [known[n]["difference"] - known[n]["low"] for n in names]
        above = [known[n]["high"] - known[n]["difference"] for n in names]
        return (
            difference - math.hypot(*below) / len(names),
            difference + math.hypot(*above) / len(names),
        )
    paired = result.get("comparisons", {}).get(f"{first}-{second}")
    if paired:
        return paired["low"], paired["high"]
    half = _binomial(result, first, second, names)
    return difference - half, difference + half


def _binomial(result: Result, first: Method, second: Method, names: list[str]) -> float:
    tests = {task["name"]: task["test"] for task in result["pool"]["tasks"]}
    variance = sum(
        p * (1 - p) / max(tests[name], 1)
        for name in names
        for p in (result["accuracy"][first][name], result["accuracy"][second][name])
    )
    return Z * math.sqrt(variance) / len(names)


def percent(share: float) -> str:
    """Returns ``80.1 %``."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Returns ``+0.6`` for 0.006, with a minus sign that is as wide as the plus."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """Returns the words for a 95 % interval."""
    return f"95 % interval {points(low)} to {points(high)}"


def title(result: Result) -> str:
    """Returns the report's title: the verdict in a line."""
    names = result["pool"]["tasks"]
    head = f"{len(names)} tasks, one pool" if len(names) != 1 else "one task"
    found = compare(result, "specialized", "individual")
    if found:
        return f"{head}: the specialized models are {_LEVEL[found.sign]} the individual ones"
    found = compare(result, "meta", "task_arithmetic")
    if found:
        return f"{head}: the meta-model is {_LEVEL[found.sign]} task arithmetic"
    return f"{head}: learned, and not measured with labels"


def verdict(result: Result) -> list[str]:
    """Returns the headline, a paragraph an item."""
    found: list[str] = []
    if result["transductive"]:
        found.append(
            "**Transductive**: the unlabelled samples are the test images themselves. The "
            "accuracies below say nothing about new images, and are not comparable with runs that "
            "learned from other images."
        )
    if not any(result["accuracy"].values()):
        found.append(
            "**No accuracy was measured**: no task has labelled test samples. What follows shows "
            "what was learned, not how good it is."
        )
    found += [
        *_short(result),
        *_stage_1(result),
        *_holdout(result),
        *_stage_2(result),
        *_control(result),
    ]
    return found


def _short(result: Result) -> Iterator[str]:
    """Gives what came out in one sentence: each stage against its two measures."""
    parts = []
    measures: list[tuple[str, Method, tuple[Method, Method]]] = [
        ("the meta-model is", "meta", ("task_arithmetic", "individual")),
        ("the specialized models are", "specialized", ("individual", "control")),
    ]
    for name, method, against in measures:
        found = [(_NAMES[other], compare(result, method, other)) for other in against]
        told = [
            f"{_LEVEL[c.sign]} {other} ({percent(c.first)} against {percent(c.second)})"
            for other, c in found
            if c
        ]
        if told:
            parts.append(f"{name} {' and '.join(told)}")
    if parts:
        yield f"**In short**, by accuracy: {'; '.join(parts)}."


def _stage_1(result: Result) -> Iterator[str]:
    found = compare(result, "meta", "task_arithmetic")
    if not found:
        return
    words = {
        1: "better than task arithmetic",
        0: "no measurable difference to task arithmetic",
        -1: "**worse than task arithmetic**, which needs no learning",
    }[found.sign]
    text = (
        f"**Stage 1**, one model for all: {percent(found.first)} {_over(found.tasks)}, "
        f"task arithmetic {percent(found.second)}: {words} "
        f"({found.words()}). {_won_and_lost(found)}"
    ).rstrip()
    individual = compare(result, "meta", "individual")
    if individual and individual.tasks > 1:
        text += (
            f" The pool's individual models have {percent(individual.second)}: "
            f"{points(individual.difference)} points for one model in place of {individual.tasks}."
        )
    yield text


def _won_and_lost(found: Comparison) -> str:
    if found.tasks == 1:
        return ""
    lost = {name: value for name, value in found.by_task.items() if value < 0}
    won = sum(value > 0 for value in found.by_task.values())
    if not lost:
        return f"It is ahead on {won} of {found.tasks} tasks and behind on none."
    return f"It is ahead on {won} of {found.tasks} tasks and behind on {_listed(lost)}."


def _holdout(result: Result) -> Iterator[str]:
    holdout = result.get("holdout")
    if not holdout or "start" not in holdout or "meta" not in holdout:
        return
    start, meta = holdout["start"], holdout["meta"]
    about = "the cross-entropy to the teachers on held-out samples"
    if f"{start:.3f}" == f"{meta:.3f}":
        yield f"**Without labels**: {about} stayed at {meta:.3f}."
        return
    words = "fell" if meta < start else "**rose**"
    yield (
        f"**Without labels**: {about} {words} from {start:.3f} at the start to {meta:.3f} after "
        f"stage 1."
    )


def _stage_2(result: Result) -> Iterator[str]:
    found = compare(result, "specialized", "individual")
    if not found:
        if not result["coefficients"]["specialize"]:
            yield "**Stage 2** was not run."
        return
    words = {
        1: "better than the individual models",
        0: "no measurable difference",
        -1: "**worse than the individual models**",
    }[found.sign]
    yield (
        f"**Stage 2**, one model a task: {percent(found.first)} {_over(found.tasks)}, "
        f"the individual models {percent(found.second)}: {words} "
        f"({found.words()}). {_told_apart(result['intervals'], found)}"
    ).rstrip()


def _told_apart(intervals: Mapping[str, Interval], found: Comparison) -> str:
    known = {name: intervals[name] for name in found.by_task if name in intervals}
    if not known:
        return _won_and_lost(found)
    better = {name: i["difference"] for name, i in known.items() if i["low"] > 0}
    worse = {name: i["difference"] for name, i in known.items() if i["high"] < 0}
    if found.tasks == 1:
        return ""
    rest = len(known) - len(better) - len(worse)
    parts = [f"better on {_listed(better)}"] if better else []
    parts += [f"worse on {_listed(worse)}"] if worse else []
    if not parts:
        return "On no single task can the two be told apart."
    parts += [f"not to be told apart on the other {rest if rest > 1 else 'one'}"] if rest else []
    return f"By task: {', '.join(parts)}."


def _control(result: Result) -> Iterator[str]:
    found = compare(result, "specialized", "control")
    if not found:
        return
    lead = (
        f"**Control**, stage 2 straight from task arithmetic without stage 1: "
        f"{percent(found.second)}, with stage 1 {percent(found.first)} ({found.words()})."
    )
    words = {
        1: "Stage 1 is what makes this difference.",
        0: "**Stage 1 was not needed for stage 2 here.**",
        -1: "**Stage 2 does better without stage 1 here.**",
    }[found.sign]
    yield f"{lead} {words}"


def _listed(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({points(value)})" for name, value in differences.items())


def _over(tasks: int) -> str:
    return f"on average over {tasks} tasks" if tasks > 1 else "on its one task"
