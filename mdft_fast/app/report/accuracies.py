# SPDX-License-Identifier: Apache-2.0
"""Accuracies by task and model, their intervals, and differences of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from mdft_fast.app.report.charts import Axis
from mdft_fast.app.report.compared_models import ComparedModel, compared_models
from mdft_fast.app.report.schema import Interval, Result

Z = 1.96  # standard deviations on either side of 95 % of a normal distribution
ABSENT = "\N{EN DASH}"


class Table(NamedTuple):
    """A table of plain text: page and Markdown show it alike.

    Attributes:
        header: of each column.
        rows: a cell a column.
        left: how many columns are aligned left; the others hold numbers.
        total: whether the last row sums up the others.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    total: bool = False


class Share(NamedTuple):
    """An accuracy and its 95 % interval, from 0 to 1."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the tasks that both were measured on, averages from 0 to 1."""

    first: float
    second: float
    low: float  # lower end of the 95 % interval of ``first - second``
    high: float
    by_task: dict[str, float]  # differences

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return len(self.by_task)

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
        return f"{points(self.difference)} points, 95 % interval {ends(self.low, self.high)}"


def percent(share: float) -> str:
    """Returns ``80.1`` for 0.801."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Returns ``+0.6`` for 0.006, with a minus sign that is as wide as the plus."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def ends(low: float, high: float) -> str:
    """Returns the words for the ends of an interval."""
    return f"{points(low)} to {points(high)}"


def transductive(result: Result) -> list[str]:
    """Returns what stands below every table of accuracies or samples."""
    note = "**Transductive**: the unlabelled samples are test images."
    return [note] if result["transductive"] else []


def accuracy_table(
    result: Mapping[str, Any],
) -> tuple[list[ComparedModel], list[tuple[str, dict[str, float]]]]:
    """Returns the table of accuracies.

    Returns:
        The models that were measured, and a row a task: its name, and model -> accuracy. Of
        several tasks the last row is "average"; a model that misses a task is absent there.
    """
    accuracy: Mapping[str, Mapping[str, float]] = result["accuracy"]
    models = [model for model in compared_models(result) if accuracy.get(model.name)]
    names = [model.name for model in models]
    rows = []
    for task in (task["name"] for task in result["pool"]["tasks"]):
        values = {name: accuracy[name][task] for name in names if task in accuracy[name]}
        if values:
            rows.append((task, values))
    complete = [name for name in names if all(name in values for _, values in rows)]
    if len(rows) > 1:
        rows.append(("average", {name: fmean(v[name] for _, v in rows) for name in complete}))
    return models, rows


def wilson(share: float, count: int) -> Share:
    """Returns Wilson's 95 % interval of a share of ``count`` samples (JASA 22, 1927)."""
    if count == 0:
        return Share(share, share, share)
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z * Z / count
    # Round-off must not put the share itself outside.
    return Share(share, min(share, (middle - half) / scale), max(share, (middle + half) / scale))


def compare(result: Result, first: str, second: str) -> Comparison | None:
    """Compares two models; None where no task has both.

    The interval is the bootstrap's where the result holds one; else that of two independent
    binomial samples, which is wider than a paired one would be.
    """
    a, b = result["accuracy"].get(first, {}), result["accuracy"].get(second, {})
    tests = {task["name"]: task["test"] for task in result["pool"]["tasks"]}
    by_task = {name: a[name] - b[name] for name in tests if name in a and name in b}
    if not by_task:
        return None
    means = fmean(a[name] for name in by_task), fmean(b[name] for name in by_task)
    known, paired = result["intervals"], result.get("comparisons", {}).get(f"{first}-{second}")
    difference = fmean(by_task.values())
    if (first, second) == ("specialized", "individual") and by_task.keys() <= known.keys():
        if "average" in known and len(known) == len(by_task) + 1:
            low, high = known["average"]["low"], known["average"]["high"]
        else:
            low, high = _mean([_share(known[name]) for name in by_task], difference)[1:]
    elif paired:
        low, high = paired["low"], paired["high"]
    else:
        variances = (p * (1 - p) / max(tests[n], 1) for n in by_task for p in (a[n], b[n]))
        half = Z * math.sqrt(sum(variances)) / len(by_task)
        low, high = difference - half, difference + half
    return Comparison(*means, low, high, by_task)


def _mean(shares: list[Share], mean: float) -> Share:
    """Returns a mean's interval; test sets are independent, so variances add, each side apart."""
    below = math.hypot(*(s.value - s.low for s in shares)) / len(shares)
    above = math.hypot(*(s.high - s.value for s in shares)) / len(shares)
    return Share(mean, mean - below, mean + above)


def accuracy_section(result: Result) -> dict[str, Any] | None:
    """Returns what the templates show; None where nothing was measured."""
    models, rows = accuracy_table(result)
    if not rows:
        return None
    tests = {task["name"]: task["test"] for task in result["pool"]["tasks"]}
    lines: list[tuple[str, dict[str, Share]]] = []
    for name, values in rows:
        if name in tests:
            shares = {model: wilson(value, tests[name]) for model, value in values.items()}
        else:
            shares = {m: _mean([s[m] for _, s in lines], mean) for m, mean in values.items()}
        lines.append((name, shares))
    every = [share for _, shares in lines for share in shares.values()]
    axis = Axis(min(s.low for s in every), max(s.high for s in every), 2, 98)
    cells = [
        (name, *(percent(values[m.name]) if m.name in values else ABSENT for m in models))
        for name, values in rows
    ]
    partial = "An average is left out where a method was not measured on every task above."
    return {
        "title": "Accuracy",
        "lead": "Top-1 in per cent on each task's own test set. Labels serve to measure, after λ "
        "was learned; the warnings name heads that labels made, if any.",
        "table": Table(["task", *(model.label for model in models)], cells, total=len(rows) > 1),
        "notes": [
            *transductive(result),
            *([partial] if any(n in tests and len(v) < len(models) for n, v in rows) else []),
        ],
        "models": models,
        "lines": [
            (name, {m: (s, Share(*map(axis.at, s))) for m, s in shares.items()})
            for name, shares in lines
        ],
        "ticks": [(axis.at(value), f"{100 * value:.0f}") for value in axis.values(5)],
        "gains": _gains(result),
    }


def _gains(result: Result) -> dict[str, Any] | None:
    """Returns specialized minus individual, a row a task: places in per cent of the width."""
    gain = compare(result, "specialized", "individual")
    if not gain:
        return None
    known = result["intervals"]
    shares = {
        name: _share(known[name]) if name in known else Share(difference, difference, difference)
        for name, difference in gain.by_task.items()
    }
    if gain.tasks > 1:
        shares["average"] = Share(gain.difference, gain.low, gain.high)
    reach = max(abs(value) for share in shares.values() for value in share) or 0.01
    axis = Axis(-reach, reach, 2, 98)
    return {
        "zero": axis.at(0),
        "ticks": [(axis.at(value), points(value)) for value in axis.values(4)],
        "lines": [
            {
                "name": name,
                "points": points(share.value),
                "ends": ends(share.low, share.high) if told else "",
                "words": _word(share) if told else "no interval",
                "at": Share(*map(axis.at, share)),
            }
            for name, share in shares.items()
            for told in [name in known or name == "average"]
        ],
    }


def _word(share: Share) -> str:
    return "better" if share.low > 0 else "worse" if share.high < 0 else "neither"


def _share(interval: Interval) -> Share:
    return Share(interval["difference"], interval["low"], interval["high"])
