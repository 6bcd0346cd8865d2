# SPDX-License-Identifier: Apache-2.0
"""What the evaluation of a run measures, once λ is learned and nothing can change it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.opening import Built, of_test
from mdft_fast.app.recipe import Curve
from mdft_fast.app.report import COMPARED, ComparedModel, rows_of_table
from mdft_fast.app.running.answers import Answers
from mdft_fast.app.running.stages import Learned
from mdft_fast.arena import digest
from mdft_fast.evaluation import TestSet, confusion, difference_interval, load_test_sets
from mdft_fast.learning import RunResult, TaughtTask
from mdft_fast.model import MetaModel, permutation


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Accuracies in [0, 1]; empty where there are no labelled samples.

    Attributes:
        compared: the rows of the table of compared models that were measured.
        accuracy: their names -> task -> top-1 accuracy.
        intervals: task (and "average") -> specialized less individual, with a 95 % interval.
        comparisons: "a-b" -> the difference of two models' averages over the tasks that both
            have, with a 95 % interval, paired sample by sample.
        curve: task -> stage 2's step -> accuracy on some samples of the task itself.
        others: task -> step -> mean accuracy on some of the other tasks', at the first and the last
            step.
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


def measure(
    built: Built,
    meta: MetaModel,
    learned: Learned,
    taught: Sequence[TaughtTask],
    watch: Callable[[str, int, int], None],
) -> Measured:
    """Evaluates base, individual models, task arithmetic, and what both stages made.

    Each of them sees each test sample once; the course of stage 2, some of them. ``watch`` is told
    how many of how many parts are done.
    """
    choose = functools.partial(of_test, built.recipe)
    tests = load_test_sets(built.tasks, built.pool.preprocess, choose)
    sizes = {test.task.name: len(test.samples) for test in tests}
    if not tests:
        return Measured([], {}, {}, {}, {}, {}, {}, {})
    judge = Judge(built, meta, tests, taught)
    models, paths = list(_coefficients(built, meta, learned)), learned.specialize
    steps = len(models) + len(paths) * (curve_wanted := built.recipe.evaluate.curve.samples > 0)
    predicted = {}
    for name, at in models:
        predicted[name] = judge.all_of(at)
        watch("evaluate", len(predicted), steps)
    correct = {
        name: {task: classes == judge.tests[task].labels for task, classes in by_task.items()}
        for name, by_task in predicted.items()
    }
    accuracy = {
        name: {task: float(hits.double().mean()) for task, hits in by_task.items()}
        for name, by_task in correct.items()
        if by_task
    }
    curve, others = {}, {}
    for name, result in paths.items() if curve_wanted else ():
        curve[name], others[name] = judge.along(name, result, built.recipe.evaluate.curve)
        watch("evaluate", len(models) + len(curve), steps)
    rows = rows_of_table(built.pool.start is not None)
    confused = {name: confusion(judge.tests[name], c) for name, c in predicted["meta"].items()}
    return Measured(
        [dataclasses.asdict(model) for model in rows if model.name in accuracy], accuracy,
        _intervals(correct), _comparisons(rows, correct), curve, others, sizes, confused,
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


class Judge:
    """Asks the meta-model, at one λ after the other, about test samples; about none twice.

    Args:
        built: the recipe, opened.
        meta: the meta-model; its λ comes back.
        tests: the test sets.
        taught: the tasks with their teachers' answers, which are not asked for again.

    Attributes:
        tests: task -> its test set.
    """

    def __init__(
        self,
        built: Built,
        meta: MetaModel,
        tests: Sequence[TestSet],
        taught: Sequence[TaughtTask],
    ) -> None:
        self.tests = {test.task.name: test for test in tests}
        self._meta, self._answers = meta, Answers(built)
        self._taught = {task.name: task for task in taught}
        self._said: dict[tuple[str, str], Tensor] = {}  # λ's digest, task -> classes

    def all_of(self, at: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the classes of all test samples, by task: at one λ, or at each task's own."""
        wanted = dict.fromkeys(self.tests, at) if isinstance(at, Tensor) else at
        return {name: self._classes(wanted[name], name) for name in self.tests if name in wanted}

    def along(
        self, target: str, result: RunResult, curve: Curve
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Returns the accuracy along a path, on some test samples of the task, and of the others.

        Args:
            target: the task that the path specializes for.
            result: the path.
            curve: which steps, and how many samples; the others are measured at both ends.
        """
        first, last = result.steps[0], result.steps[-1]
        path = dict(zip(result.steps, result.path, strict=True))
        rest = [name for name in self.tests if name != target]
        own = {step: path[step] for step in sorted({first, *curve.steps, last}) if step in path}
        ends, share = {step: path[step] for step in (first, last)}, max(1, len(rest))
        return (
            self._accuracies(
                own, [name for name in (target,) if name in self.tests], curve.samples
            ),
            self._accuracies(ends, rest, -(-curve.samples // share)),
        )

    def _accuracies(
        self, path: Mapping[int, Tensor], names: Sequence[str], samples: int
    ) -> dict[int, float]:
        """Returns at each step the mean over tasks of the accuracy on some of their samples."""
        measured = {}
        for step, at in path.items() if names else ():
            hits = []
            for name in names:
                rows = permutation(len(self.tests[name].labels), f"curve/{name}")[:samples]
                rows = rows.sort().values
                right = self._classes(at, name, rows) == self.tests[name].labels[rows]
                hits.append(float(right.double().mean()))
            measured[step] = sum(hits) / len(hits)
        return measured

    def _classes(self, at: Tensor, name: str, rows: Tensor | None = None) -> Tensor:
        """Returns the classes of a task's test samples at a λ; ``rows``: of some of them alone."""
        key, test = (digest(at), name), self.tests[name]
        if key not in self._said:
            if rows is not None and len(rows) < len(test.labels):
                with self._meta.using(at):
                    return self._answers.classes(self._meta, test.take(rows))
            self._said[key] = self._asked(at, name)
        return self._said[key] if rows is None else self._said[key][rows]

    def _asked(self, at: Tensor, name: str) -> Tensor:
        test, taught = self.tests[name], self._taught.get(name)
        if taught is not None and torch.equal(at, self._meta.individual(name)):
            return self._answers.own_classes(self._meta, test, taught)
        with self._meta.using(at):
            return self._answers.classes(self._meta, test)


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
