# SPDX-License-Identifier: Apache-2.0
"""What the evaluation of a run measures, once λ is learned and nothing can change it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mdft_fast.app.opening import Built, images_at_once
from mdft_fast.app.running.learned import Learned
from mdft_fast.evaluation import (
    Evaluation,
    TestSet,
    confusion,
    difference_interval,
    evaluate,
    load_test_sets,
)
from mdft_fast.model import TASK_ARITHMETIC, MetaModel

Check = Callable[[list[TestSet]], Evaluation]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Accuracies in [0, 1]; empty where there are no labelled samples.

    Attributes:
        accuracy: method -> task -> top-1 accuracy.
        intervals: task (and "average") -> specialized less individual, with a 95 % interval.
        comparisons: "a-b" -> the difference of two methods' averages over the tasks that both
            have, with a 95 % interval, paired sample by sample.
        curve: task -> stage 2's step -> accuracy on the task itself.
        others: task -> step -> mean accuracy on the other tasks, at the first and last step.
        tests: task -> number of test samples.
        confusion: task -> which classes the meta-model takes for which.
    """

    accuracy: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, float]]
    comparisons: dict[str, dict[str, float]]
    curve: dict[str, dict[int, float]]
    others: dict[str, dict[int, float]]
    tests: dict[str, int]
    confusion: dict[str, dict[str, list[Any]]]


def worse_than_base(accuracy: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns a sentence if fine-tuned models are worse than their base, on tasks of their own."""
    own, base = accuracy.get("individual", {}), accuracy.get("pretrained", {})
    worse = [
        f"{name} ({100 * own[name]:.1f} against {100 * base[name]:.1f})"
        for name in own
        if name in base and own[name] < base[name]
    ]
    if not worse:
        return []
    return [
        f"The pool's own models are worse than the pre-trained one on {', '.join(worse)}: a head, "
        f"the preprocessing or the order of classes may be wrong, and what is learned builds on it."
    ]


def measure(built: Built, meta: MetaModel, learned: Learned) -> Measured:
    """Evaluates base, individual models, task arithmetic, and what both stages made."""
    tests = load_test_sets(built.tasks, built.pool.preprocess)
    sizes = {test.task.name: len(test.samples) for test in tests}
    if not tests:
        return Measured({}, {}, {}, {}, {}, {}, {})
    check = functools.partial(evaluate, meta, batch=images_at_once(built.recipe))
    correct: dict[str, dict[str, Tensor]] = {}
    for method, value in (
        ("pretrained", 0.0),
        ("task_arithmetic", TASK_ARITHMETIC),
        ("meta", learned.construct.coefficients),
    ):
        with meta.using(value):
            found = check(tests)  # the last one is the meta-model's
        correct[method] = dict(found.correct)
    confused = {test.task.name: confusion(test, found.predicted[test.task.name]) for test in tests}
    correct["individual"] = _each(
        meta, check, tests, {name: meta.individual(name) for name in built.pool.names}
    )
    final = {name: result.coefficients for name, result in learned.specialize.items()}
    correct["specialized"] = _each(meta, check, tests, final)
    control = {name: result.coefficients for name, result in learned.control.items()}
    correct["control"] = _each(meta, check, tests, control)
    accuracy = {
        method: {name: float(hits.double().mean()) for name, hits in by_task.items()}
        for method, by_task in correct.items()
        if by_task
    }
    curve = {name: _curve(meta, check, tests, learned, name) for name in final if name in sizes}
    others = {
        name: _others(meta, check, tests, learned, name)
        for name in final
        if len(sizes.keys() - {name})
    }
    return Measured(
        accuracy, _intervals(correct), _comparisons(correct), curve, others, sizes, confused
    )


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


def _curve(
    meta: MetaModel, check: Check, tests: list[TestSet], learned: Learned, name: str
) -> dict[int, float]:
    mine = [test for test in tests if test.task.name == name]
    accuracies = {}
    for step, at in enumerate(learned.specialize[name].path):
        with meta.using(at):
            accuracies[step] = check(mine).average
    return accuracies


def _others(
    meta: MetaModel, check: Check, tests: list[TestSet], learned: Learned, name: str
) -> dict[int, float]:
    rest = [test for test in tests if test.task.name != name]
    path = learned.specialize[name].path
    accuracies = {}
    for step in (0, len(path) - 1):
        with meta.using(path[step]):
            accuracies[step] = check(rest).average
    return accuracies


def _intervals(correct: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    pairs = {
        name: (hits, correct["individual"][name]) for name, hits in correct["specialized"].items()
    }
    intervals = {
        name: difference_interval([mine], [other]) for name, (mine, other) in pairs.items()
    }
    if pairs:
        mine, other = zip(*pairs.values(), strict=True)
        intervals["average"] = difference_interval(mine, other)
    return intervals


def _comparisons(correct: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    compared = {}
    for a, b in (("meta", "task_arithmetic"), ("specialized", "control")):
        common = [name for name in correct[a] if name in correct[b]]
        if common:
            compared[f"{a}-{b}"] = difference_interval(
                [correct[a][name] for name in common], [correct[b][name] for name in common]
            )
    return compared
