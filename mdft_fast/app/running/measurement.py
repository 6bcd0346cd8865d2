# SPDX-License-Identifier: Apache-2.0
"""What the evaluation of a run measures, once λ is learned and nothing can change it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mdft_fast.app.opening import Built, images_at_once
from mdft_fast.app.report import COMPARED, ComparedModel, rows_of_table
from mdft_fast.app.running.stages import Learned
from mdft_fast.evaluation import (
    Evaluation,
    TestSet,
    confusion,
    difference_interval,
    evaluate,
    load_test_sets,
)
from mdft_fast.model import MetaModel

Check = Callable[[list[TestSet]], Evaluation]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Accuracies in [0, 1]; empty where there are no labelled samples.

    Attributes:
        compared: the rows of the table of compared models that were measured.
        accuracy: their names -> task -> top-1 accuracy.
        intervals: task (and "average") -> specialized less individual, with a 95 % interval.
        comparisons: "a-b" -> the difference of two models' averages over the tasks that both
            have, with a 95 % interval, paired sample by sample.
        curve: task -> stage 2's step -> accuracy on the task itself.
        others: task -> step -> mean accuracy on the other tasks, at the first and last step.
        tests: task -> number of test samples.
        confusion: task -> which classes the meta-model takes for which.
    """

    compared: list[dict[str, Any]]
    accuracy: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, float]]
    comparisons: dict[str, dict[str, float]]
    curve: dict[str, dict[int, float]]
    others: dict[str, dict[int, float]]
    tests: dict[str, int]
    confusion: dict[str, dict[str, list[Any]]]


def worse_than_base(accuracy: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns a sentence if fine-tuned models are worse than their base, on tasks of their own."""
    individual, base = accuracy.get("individual", {}), accuracy.get("pretrained", {})
    worse = [
        f"{name} ({100 * individual[name]:.1f} against {100 * base[name]:.1f})"
        for name in individual
        if name in base and individual[name] < base[name]
    ]
    if not worse:
        return []
    return [
        f"The pool's own models are worse than the pre-trained one on {', '.join(worse)}: a head, "
        f"the preprocessing or the order of classes may be wrong, and what is learned builds on it."
    ]


def untested_classes(confusion: Mapping[str, Mapping[str, list[Any]]]) -> Iterator[str]:
    """Yields a sentence for each task that has no test image of some class."""
    for task, pairs in confusion.items():
        classes = pairs["classes"]
        without = sorted(set(range(len(classes))) - set(pairs["true"]))
        if without:
            names = ", ".join(repr(classes[i]) for i in without[:3])
            more = " and others" if without[3:] else ""
            yield (
                f"Task {task!r}: {len(without):,} of {len(classes):,} classes are without a test "
                f"image, so nothing is known of them: {names}{more}."
            )


def measure(built: Built, meta: MetaModel, learned: Learned) -> Measured:
    """Evaluates base, individual models, task arithmetic, and what both stages made."""
    tests = load_test_sets(built.tasks, built.pool.preprocess)
    sizes = {test.task.name: len(test.samples) for test in tests}
    if not tests:
        return Measured([], {}, {}, {}, {}, {}, {}, {})
    check = functools.partial(evaluate, meta, batch=images_at_once(built.recipe))
    correct: dict[str, dict[str, Tensor]] = {}
    confused: dict[str, dict[str, list[Any]]] = {}
    for name, at in _coefficients(built, meta, learned):
        if isinstance(at, dict):
            correct[name] = _each(meta, check, tests, at)
            continue
        with meta.using(at):
            evaluation = check(tests)
        correct[name] = dict(evaluation.correct)
        if name == "meta":
            confused = {t.task.name: confusion(t, evaluation.predicted[t.task.name]) for t in tests}
    accuracy = {
        name: {task: float(hits.double().mean()) for task, hits in by_task.items()}
        for name, by_task in correct.items()
        if by_task
    }
    curve: dict[str, dict[int, float]] = {}
    others: dict[str, dict[int, float]] = {}
    for name, result in learned.specialize.items():
        path = dict(zip(result.steps, result.path, strict=True))
        target = [test for test in tests if test.task.name == name]
        rest = [test for test in tests if test.task.name != name]
        if target:
            curve[name] = _along(meta, check, target, path)
        if rest:
            ends = {step: path[step] for step in (result.steps[0], result.steps[-1])}
            others[name] = _along(meta, check, rest, ends)
    models = rows_of_table(built.pool.start is not None)
    return Measured(
        [dataclasses.asdict(model) for model in models if model.name in accuracy], accuracy,
        _intervals(correct), _comparisons(models, correct), curve, others, sizes, confused,
    )  # fmt: skip


def _coefficients(
    built: Built, meta: MetaModel, learned: Learned
) -> Iterator[tuple[str, Tensor | dict[str, Tensor]]]:
    """Gives every compared model's name and λ: one for all tasks, or each task's own."""
    for model in COMPARED:
        if isinstance(model.coefficients, float):
            yield model.name, meta.on_tasks(model.coefficients)
    if built.pool.start is not None:
        yield "start", meta.as_coefficients([1.0] + [0.0] * len(built.pool.names))
    yield "meta", learned.construct.coefficients
    yield "individual", {name: meta.individual(name) for name in built.pool.names}
    yield "specialized", {name: r.coefficients for name, r in learned.specialize.items()}
    yield "control", {name: r.coefficients for name, r in learned.control.items()}


def _each(
    meta: MetaModel, check: Check, tests: list[TestSet], at: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns what each task's own λ gets right on that task."""
    hits: dict[str, Tensor] = {}
    for test in tests:
        name = test.task.name
        if name in at:
            with meta.using(at[name]):
                hits.update(check([test]).correct)
    return hits


def _along(
    meta: MetaModel,
    check: Check,
    tests: list[TestSet],
    path: Mapping[int, Tensor],
) -> dict[int, float]:
    """Returns the average accuracy on some tests at each step of a path."""
    accuracies = {}
    for step, coefficients in path.items():
        with meta.using(coefficients):
            accuracies[step] = check(tests).average
    return accuracies


def _intervals(correct: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    individual = correct["individual"]
    pairs = {name: (hits, individual[name]) for name, hits in correct["specialized"].items()}
    intervals = {name: difference_interval([one], [other]) for name, (one, other) in pairs.items()}
    if pairs:
        intervals["average"] = difference_interval(*zip(*pairs.values(), strict=True))
    return intervals


def _comparisons(
    models: Sequence[ComparedModel], correct: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Compares models of one kind; those with the individual ones stand among the intervals."""
    kinds = {model.name: model.kind for model in models}
    compared = {}
    for a, b in ((model.name, other) for model in models for other in model.against):
        common = [name for name in correct[a] if name in correct[b]]
        if common and kinds[a] == kinds[b] and b != "individual":
            compared[f"{a}-{b}"] = difference_interval(
                [correct[a][name] for name in common], [correct[b][name] for name in common]
            )
    return compared
