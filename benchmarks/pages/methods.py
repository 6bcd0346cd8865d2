# SPDX-License-Identifier: Apache-2.0
"""What each method is worth and takes, from benchmarks/run.py's methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.candidates import (
    BASELINE,
    INDIVIDUAL,
    INPUTS,
    LEARNED,
    NO_DATA,
    PRETRAINED,
    TASK_ARITHMETIC,
    TRANSFORMED,
)
from benchmarks.markdown import mean, number, origin, percent, table
from benchmarks.pages.published_merges import ANCHORS, DIFFERS
from benchmarks.pictures import BLUE, GRAY, GREEN, INK, ORANGE, VERMILION, heading, new_figure, save

PICTURE = "methods.png"
COLORS = {NO_DATA: BLUE, TRANSFORMED: ORANGE, INPUTS: GREEN, LEARNED: VERMILION, BASELINE: INK}
TITLES = {"demo-v1": "demo pool", "real_pool": "real pool"}
_NEAR, _CLOSE = 1.6, 4.0  # times as long: one name for both; names on either side
_BETTER = 0.97  # of task arithmetic's held-out loss: what is worse gets no name
_WORST = 1.05  # of the base's held-out loss: what is worse is left out of the picture


def block(content: Any) -> str:
    """Returns the block of docs/methods.md: picture, a table a pool, anchors."""
    return "\n\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    yield f"![accuracy and held-out loss against time](../benchmarks/results/{PICTURE})"
    for name, about in content["pools"].items():
        rows = [row for row in content["results"] if row["pool"] == name]
        yield f"### {_title(name).capitalize()}"
        yield table(
            ["made by", "kind", "loss", "agree", "accuracy", "of gap", "CPU s", "peak, MB"],
            map(_line, rows),
            left=2,
        )
        if about.get("spearman"):
            yield (
                f"Spearman's rank correlation with accuracy over these {about['models']} models, "
                f"the individual ones left out: of the held-out loss, the lower the better, "
                f"{number(about['spearman']['loss'])}; of agreement "
                f"{number(about['spearman']['agreement'])}."
            )
    yield (
        "Ranked by loss: the cross-entropy to the teachers on held-out samples, in nats, without "
        "labels. Agree: how often the class is the teacher's there, per cent. Accuracy: top-1 on "
        "the test samples, per cent; labels choose nothing. Of gap: the share of the way from task "
        "arithmetic to the individual models, in accuracy, per cent. CPU s: the process's own "
        "time, one thread; λ's includes its start's. Peak: resident memory beyond the pool and the "
        f"samples. λ learned: stage 1 on the cross-entropy alone. {origin(content)}"
    )
    yield "### Beside them: what is published"
    rows = [[name, *map(_points, pair)] for name, pair in ANCHORS.items()]
    yield table(["method", "ViT-B/32", "ViT-L/14"], rows)
    yield DIFFERS


def unseen(content: Any) -> str:
    """Returns the block of docs/methods.md on tasks that took no part in a merge."""
    rows = content["results"]
    models = list(rows[0]["accuracy"])
    lines = []
    for name in dict.fromkeys(row["pool"] for row in rows):
        of_pool = [row["accuracy"] for row in rows if row["pool"] == name]
        means = [percent(mean(accuracy[model] for accuracy in of_pool)) for model in models]
        lines.append([_title(name), len(of_pool), *means])
    return "\n\n".join([
        table(["pool", "tasks", *models], lines),
        "Top-1 on the test samples of each task in turn, per cent, mean over tasks: the merge is "
        "of all other tasks, and the task's head is the one that it has for its own. "
        f"{origin(content)}",
    ])  # fmt: skip


def _line(row: Mapping[str, Any]) -> list[object]:
    shares = (percent(row[key]) for key in ("agreement", "accuracy", "gap"))
    cost = number(row["cpu_s"], 1), number(row["peak_mb"], 0)
    return [row["candidate"], row["kind"], number(row["loss"], 4), *shares, *cost]


def _points(value: float | None) -> str:
    return number(value, 1)


def _title(name: str) -> str:
    return TITLES.get(name, name)


def draw(content: Any, target: Path) -> None:
    """Writes a PNG: a row a pool; accuracy and held-out loss against time, a point a model."""
    pools = list(content["pools"])
    figure = new_figure(11, 4.2 * len(pools))
    heading(figure, "What each method makes of a pool, and what it takes")
    for i, name in enumerate(pools):
        rows = {r["candidate"]: r for r in content["results"] if r["pool"] == name}
        for j, (key, words) in enumerate(
            [("accuracy", "accuracy, per cent"), ("loss", "held-out cross-entropy, nats")]
        ):
            axes = figure.add_subplot(len(pools), 2, 2 * i + j + 1)
            _panel(axes, rows, key)
            axes.set(xscale="log", xlabel="CPU seconds, one thread", ylabel=words)
            axes.set_title(_title(name))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    save(figure, target)


def _panel(axes: Any, rows: Mapping[str, Mapping[str, Any]], key: str) -> None:
    factor = 100 if key == "accuracy" else 1
    for name, style in ((INDIVIDUAL, "-"), (TASK_ARITHMETIC, "--"), (PRETRAINED, ":")):
        if name in rows and rows[name][key] is not None:
            axes.axhline(factor * rows[name][key], color=GRAY, lw=1, ls=style, zorder=1)
            axes.annotate(name.replace("_", " "), (1, factor * rows[name][key]),
                          xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=7, color=GRAY)  # fmt: skip
    floor = rows.get(PRETRAINED, {}).get("loss", float("inf")) * _WORST
    made = [r for r in rows.values() if r["cpu_s"] and r["loss"] <= floor and r[key] is not None]
    for kind, color in COLORS.items():
        some = [r for r in made if r["kind"] == kind and r["candidate"] != TASK_ARITHMETIC]
        if some:
            axes.plot([r["cpu_s"] for r in some], [factor * r[key] for r in some], "o", ms=4.5,
                      color=color, label=kind)  # fmt: skip
    seconds = [row["cpu_s"] for row in made]
    axes.set_xlim(min(seconds) / 1.5, max(seconds) * 12)  # room for names
    plain = rows[TASK_ARITHMETIC]["loss"] * _BETTER if TASK_ARITHMETIC in rows else floor
    named = _named([row for row in made if row["loss"] < plain])
    for row in named:
        left = any(1 < other["cpu_s"] / row["cpu_s"] < _CLOSE for other in named)
        axes.annotate(
            row["candidate"],
            (row["cpu_s"], factor * row[key]),
            fontsize=6.8,
            xytext=(-5 if left else 5, 0),
            ha="right" if left else "left",
            va="center",
            textcoords="offset points",
            color=COLORS[row["kind"]],
        )


def _named(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the models that a name goes to: better by the loss than all that are as cheap.

    As cheap is what takes up to ``_NEAR`` times as long.
    """
    named: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: row["loss"]):
        if all(row["cpu_s"] * _NEAR < other["cpu_s"] for other in named):
            named.append(row)
    return named
