# SPDX-License-Identifier: Apache-2.0
"""A run's course in small charts: stage 1's losses and filter, and the path through stage 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdft_fast.app.report.accuracies import ABSENT, Table, ends, percent, points, transductive
from mdft_fast.app.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Bar,
    Panel,
    Point,
    Series,
    curves,
    finite,
    number,
    smooth,
)
from mdft_fast.app.report.schema import Filter, Metric, Result, SpecializePoint, TaskCounts


def stage_1_section(result: Result, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Returns what the templates show; lists are empty where there is nothing to draw."""
    lines = [line for line in metrics if line["stage"] == "construct"]
    names = [task["name"] for task in result["pool"]["tasks"]]
    losses = {"sum over tasks": _column(lines, [line["loss"] for line in lines])}
    losses = losses if len(names) > 1 else {}
    for name in names:
        losses[name] = _column(lines, [line["losses"].get(name) for line in lines])
    kept = {name: _column(lines, [line["kept"].get(name) for line in lines]) for name in names}
    columns = result["trainable"] // max(1, len(result["coefficients"]["construct"]))
    steps = len(lines)
    return {
        "title": "Stage 1: the meta-model",
        "lead": f"{result['trainable']:,} numbers were learned: {_vectors(result)} × "
        f"{columns:,} column{'s' * (columns != 1)} of λ"
        f"{f', in {steps:,} steps' if steps else ''}.",
        "notes": ["λ by task and layer and all curves are drawn in [report.html](report.html)."],
        "losses": [_loss(name, line) for name, line in losses.items() if line],
        "all_kept": bool(lines) and all(y == 1 for line in kept.values() for _, y in line),
        "kept": [_kept(name, line) for name, line in kept.items() if line],
    }


def _vectors(result: Result) -> str:
    tasks = len(result["pool"]["tasks"])
    words = f"{tasks} task vector{'s' * (tasks != 1)}"
    return f"({words} + 1 start)" if "start" in result["pool"] else words


def stage_2_section(result: Result, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    """Returns what the templates show; None where stage 2 was not run."""
    paths = {name: path for name, path in result["specialize"].items() if path}
    if not paths and not result["coefficients"]["specialize"]:
        return None
    losses = {}
    for name in (task["name"] for task in result["pool"]["tasks"]):
        lines = [x for x in metrics if x["stage"] == "specialize" and x["task"] == name]
        losses[name] = _column(lines, [line["loss"] for line in lines])
    note = (
        "Distance: L2 of λ − e_k, where λ = e_k is the individual model itself. Others: mean "
        "accuracy of the specialized model on the other tasks."
    )
    some = result.get("curve_samples")
    if some:
        note += (
            f" Accuracy by step is measured on at most {some:,} test samples a task, the same ones "
            "at each step, and that on the others on as many of all of them together."
        )
    return {
        "title": "Stage 2: the specialized models",
        **({"table": _paths(result, paths)} if paths else {}),
        "notes": [note, *transductive(result)] if paths else [],
        "accuracies": [
            panel for name, path in paths.items() for panel in _accuracy(result, name, path)
        ],
        "distances": [_distance(name, path) for name, path in paths.items()],
        "losses": [_loss(name, line) for name, line in losses.items() if line],
    }


def samples_section(result: Result) -> dict[str, Any]:
    """Returns the counts of samples, and of each task what the filter keeps."""
    tasks, chosen = result["pool"]["tasks"], result.get("filter")
    header = ["task", "classes", "unlabelled", "to learn", "held out", "kept", "share kept", "test"]
    rows = [
        (task["name"], f"{task['classes']:,}", _looked_at(task), *(f"{task[key]:,}" for key in (
         "learn", "holdout", "kept")), f"{percent(task['kept_share'])} %",
         f"{task['test']:,}" if task["test"] else ABSENT) for task in tasks
    ]  # fmt: skip
    return {
        "title": "Samples",
        "filter": chosen,
        "panels": [_histogram(task, chosen) for task in tasks if sum(task.get("entropy", []))],
        "table": Table(header, rows),
        "notes": [_filter_note(chosen), *transductive(result)],
    }


def _looked_at(task: TaskCounts) -> str:
    count, of = task["unlabelled"], task.get("of", task["unlabelled"])
    return f"{count:,}" + (f" of {of:,}" if count < of else "")


def _filter_note(chosen: Filter | None) -> str:
    if not chosen:
        return "Kept: samples to learn from that pass the filter, equation (4)."
    if not chosen["enabled"]:
        return "The filter was off: every sample was kept."
    of_meta = chosen["entropy_of"] == "meta"
    note = (
        f"A sample is kept if the entropy of {'the meta-model' if of_meta else 'its teacher'}'s "
        f"prediction is below μ = {chosen['mu']:g} of the largest there is, log C: equation (4)."
    )
    return note if not of_meta else (
        f"{note} That entropy changes at each step: the counts kept are means over the steps, and "
        "the histograms show the teacher's for comparison."
    )  # fmt: skip


def _column(lines: Sequence[Metric], values: Sequence[float | None]) -> list[Point]:
    return finite([line["step"] for line in lines], values)


def _loss(title: str, line: Sequence[Point]) -> Panel:
    means = smooth(line)
    noisy = means != list(line)
    series = [Series("loss", "raw" if noisy else "blue", line)]
    series += [Series("smoothed", "blue", means)] if noisy else []
    return curves(title, series, _first_to_last(means))


def _first_to_last(line: Sequence[Point], unit: str = "") -> str:
    first, last = (f"{number(float(f'{y:.3g}'))}{unit}" for _, y in (line[0], line[-1]))
    return f"{first} → {last}" if len(line) > 1 else first


def _kept(name: str, line: Sequence[Point]) -> Panel:
    shares = [(x, 100 * y) for x, y in line]
    mean = sum(y for _, y in shares) / len(shares)
    note = f"{mean:.0f} % on average"
    return curves(name, [Series("kept, %", "blue", shares)], note, bounds=(0, 100))


def _accuracy(result: Result, name: str, path: Sequence[SpecializePoint]) -> list[Panel]:
    """Draws a specialized model's accuracy by step; nothing where it was not measured."""
    steps = [point["step"] for point in path]
    target = [(x, 100 * y) for x, y in finite(steps, [p["accuracy"] for p in path])]
    if not target:
        return []
    others = [(x, 100 * y) for x, y in finite(steps, [p["others"] for p in path])]
    series = [Series("other tasks, %", "others", others)] if others else []
    series.append(Series("target task, %", "target", target))
    individual = result["accuracy"].get("individual", {}).get(name)
    level = (100 * individual, "level") if individual is not None else None
    return [curves(name, series, _first_to_last(target, " %"), level=level)]


def _distance(name: str, path: Sequence[SpecializePoint]) -> Panel:
    line = finite([point["step"] for point in path], [point["distance"] for point in path])
    series = [Series("distance to e_k", "blue", line)]
    top = max(y for _, y in line)
    return curves(name, series, _first_to_last(line), bounds=(0, 1.08 * top or 1.0))


def _paths(result: Result, paths: dict[str, list[SpecializePoint]]) -> Table:
    rows: list[Sequence[str]] = []
    for name, path in paths.items():
        last, known = path[-1], result["intervals"].get(name)
        gain = (points(known["difference"]), ends(known["low"], known["high"])) if known else (
            ABSENT, ABSENT)  # fmt: skip
        others = ABSENT if last["others"] is None else percent(last["others"])
        distances = [point["distance"] for point in (path[0], last)]
        moved = " → ".join(ABSENT if d is None else f"{d:.2f}" for d in distances)
        rows.append((name, *gain, moved, others))
    header = ["task", "against individual", "95 % interval", "distance to e_k", "others, %"]
    return Table(header, rows)


def _histogram(task: TaskCounts, chosen: Filter | None) -> Panel:
    counts = task["entropy"]
    mu = chosen["mu"] if chosen and chosen["enabled"] else None
    across, up = Axis(0, 1, LEFT, RIGHT), Axis(0, 1.08 * max(counts), BOTTOM, TOP)
    width = 1 / len(counts)
    bars, tips = [], []
    for i, count in enumerate(counts):
        low, high = i * width, (i + 1) * width
        tips.append((across.at((low + high) / 2), f"{low:.3g} to {high:.3g}: {count} samples"))
        for start, end, style in _parts(low, high, mu) if count else ():
            x, y = across.at(start), up.at(count)
            bars.append(Bar(x, y, round(across.at(end) - x, 1), round(BOTTOM - y, 1), style))
    note = f"{task['kept']:,} of {task['learn']:,} kept"
    mark = _mark(chosen, across) if chosen and chosen["mu"] <= 1 else None
    ticks = across.ticks(5), up.ticks(3, whole=True)
    return Panel(task["name"], note, *ticks, bars=bars, mark=mark, tips=tips)


def _mark(chosen: Filter, across: Axis) -> tuple[float, str, str]:
    """Returns the threshold's place, its text, and where the text is anchored."""
    mu, off = chosen["mu"], "" if chosen["enabled"] else ", not applied"
    return across.at(mu), f"μ = {mu:g}{off}", "end" if mu > 0.6 else "start"


def _parts(low: float, high: float, mu: float | None) -> list[tuple[float, float, str]]:
    """Cuts a bin at the threshold: what lies below is kept."""
    if mu is None or high <= mu + 1e-9:
        return [(low, high, "kept")]
    if low >= mu - 1e-9:
        return [(low, high, "removed")]
    return [(low, mu, "kept"), (mu, high, "removed")]
