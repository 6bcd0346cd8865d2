# SPDX-License-Identifier: Apache-2.0
"""What a result says in words: gains, losses, and what cannot be told apart from noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mdft_fast.app.report.accuracies import Comparison, compare, percent, points
from mdft_fast.app.report.compared_models import compared_models
from mdft_fast.app.report.schema import Interval, Result

_LEVEL = {1: "better than", 0: "level with", -1: "worse than"}  # by a comparison's sign


def title(result: Result) -> str:
    """Returns the report's title: the verdict in a line."""
    tasks = len(result["pool"]["tasks"])
    head = f"{tasks} tasks, one pool" if tasks != 1 else "one task"
    if gain := compare(result, "specialized", "individual"):
        return f"{head}: the specialized models are {_LEVEL[gain.sign]} the individual ones"
    if gain := compare(result, "meta", "task_arithmetic"):
        return f"{head}: the meta-model is {_LEVEL[gain.sign]} task arithmetic"
    return f"{head}: learned, and not measured with labels"


def verdict(result: Result) -> list[str]:
    """Returns the headline, a paragraph an item."""
    paragraphs = []
    if result["transductive"]:
        paragraphs.append(
            "**Transductive**: the unlabelled samples are the test images themselves. The "
            "accuracies below say nothing about new images, and are not comparable with runs that "
            "learned from other images."
        )
    if not any(result["accuracy"].values()):
        paragraphs.append(
            "**No accuracy was measured**: no task has labelled test samples. What follows shows "
            "what was learned, not how good it is."
        )
    for part in (_short, _stage_1, _holdout, _stage_2, _control):
        paragraphs += part(result)
    return paragraphs


def _short(result: Result) -> Iterator[str]:
    """Gives what came out in one sentence: each model against those it is to be compared with."""
    models = {model.name: model for model in compared_models(result)}
    parts = []
    for model in models.values():
        gains = {name: compare(result, model.name, name) for name in model.against}
        told = [
            f"{_LEVEL[gain.sign]} {models[name].phrase} "
            f"({percent(gain.first)} % against {percent(gain.second)} %)"
            for name, gain in gains.items()
            if gain
        ]
        if told:
            verb = "is" if model.kind == "one model" else "are"
            parts.append(f"{model.phrase} {verb} {' and '.join(told)}")
    if parts:
        yield f"**In short**, by accuracy: {'; '.join(parts)}."


def _stage_1(result: Result) -> Iterator[str]:
    gain = compare(result, "meta", "task_arithmetic")
    if not gain:
        return
    judgement = {
        1: "better than task arithmetic",
        0: "no measurable difference to task arithmetic",
        -1: "**worse than task arithmetic**, which needs no learning",
    }[gain.sign]
    sentence = (
        f"**Stage 1**, one model for all: {percent(gain.first)} % {_over(gain.tasks)}, "
        f"task arithmetic {percent(gain.second)} %: {judgement} "
        f"({gain.words()}). {_won_and_lost(gain)}"
    ).rstrip()
    if start := compare(result, "meta", "start"):
        sentence += (
            f" The merge that λ started from has {percent(start.second)} %: learning changed that "
            f"by {start.words()}."
        )
    individual = compare(result, "meta", "individual")
    if individual and individual.tasks > 1:
        sentence += (
            f" The pool's individual models have {percent(individual.second)} %: "
            f"{points(individual.difference)} points for one model in place of {individual.tasks}."
        )
    yield sentence


def _won_and_lost(gain: Comparison) -> str:
    if gain.tasks == 1:
        return ""
    lost = {name: value for name, value in gain.by_task.items() if value < 0}
    won = sum(value > 0 for value in gain.by_task.values())
    behind = _listed(lost) if lost else "none"
    return f"It is ahead on {won} of {gain.tasks} tasks and behind on {behind}."


def _holdout(result: Result) -> Iterator[str]:
    holdout = result.get("holdout")
    if not holdout or "start" not in holdout or "meta" not in holdout:
        return
    start, meta = f"{holdout['start']:.3f}", f"{holdout['meta']:.3f}"
    lead = "**Without labels**: the cross-entropy to the teachers on held-out samples"
    if start == meta:
        yield f"{lead} stayed at {meta}."
    else:
        moved = "fell" if holdout["meta"] < holdout["start"] else "**rose**"
        yield f"{lead} {moved} from {start} at the start to {meta} after stage 1."


def _stage_2(result: Result) -> Iterator[str]:
    gain = compare(result, "specialized", "individual")
    if gain:
        judgement = {
            1: "better than the individual models",
            0: "no measurable difference",
            -1: "**worse than the individual models**",
        }[gain.sign]
        yield (
            f"**Stage 2**, one model a task: {percent(gain.first)} % {_over(gain.tasks)}, "
            f"the individual models {percent(gain.second)} %: {judgement} "
            f"({gain.words()}). {_told_apart(result['intervals'], gain)}"
        ).rstrip()
    elif not result["coefficients"]["specialize"]:
        yield "**Stage 2** was not run."


def _told_apart(intervals: Mapping[str, Interval], gain: Comparison) -> str:
    known = {name: intervals[name] for name in gain.by_task if name in intervals}
    if not known or gain.tasks == 1:
        return _won_and_lost(gain)
    better = {name: i["difference"] for name, i in known.items() if i["low"] > 0}
    worse = {name: i["difference"] for name, i in known.items() if i["high"] < 0}
    rest = len(known) - len(better) - len(worse)
    parts = [f"better on {_listed(better)}"] if better else []
    parts += [f"worse on {_listed(worse)}"] if worse else []
    if not parts:
        return "On no single task can the two be told apart."
    parts += [f"not to be told apart on the other {rest if rest > 1 else 'one'}"] if rest else []
    return f"By task: {', '.join(parts)}."


def _control(result: Result) -> Iterator[str]:
    gain = compare(result, "specialized", "control")
    if gain:
        judgement = {
            1: "Stage 1 is what makes this difference.",
            0: "**Stage 1 was not needed for stage 2 here.**",
            -1: "**Stage 2 does better without stage 1 here.**",
        }[gain.sign]
        yield (
            f"**Control**, stage 2 straight from task arithmetic without stage 1: "
            f"{percent(gain.second)} %, with stage 1 {percent(gain.first)} % ({gain.words()}). "
            f"{judgement}"
        )


def _listed(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({points(value)})" for name, value in differences.items())


def _over(tasks: int) -> str:
    return f"on average over {tasks} tasks" if tasks > 1 else "on its one task"
