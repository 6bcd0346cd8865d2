# SPDX-License-Identifier: Apache-2.0
"""Accuracy by hand, and the bootstrap's interval."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mdft_fast import MdftError, Task, evaluate
from mdft_fast.evaluation import confusion, difference_interval, load_test_sets
from tests.world import PREPROCESS, World


def test_accuracy_is_the_share_of_right_answers(world: World) -> None:
    meta = world.meta()
    with meta.using(meta.individual("letters")):
        result = evaluate(meta, world.tasks)
    # The labels are what the task's own model says, every fifth one changed.
    assert result.accuracy["letters"] == pytest.approx(0.8)
    assert result.correct["letters"].tolist() == [i % 5 != 0 for i in range(40)]
    assert result.average == pytest.approx(sum(result.accuracy.values()) / 3)


def test_confusion_counts_every_sample_once(world: World) -> None:
    meta = world.meta()
    tests = load_test_sets(world.tasks, PREPROCESS)
    with meta.using(meta.individual("letters")):
        found = evaluate(meta, tests)
    (test,) = [test for test in tests if test.task.name == "letters"]
    counted = confusion(test, found.predicted["letters"])
    assert counted["classes"] == list(test.task.class_names)
    pairs = list(zip(counted["true"], counted["predicted"], strict=True))
    assert pairs == sorted(set(pairs))
    labels, said = test.labels.tolist(), found.predicted["letters"].tolist()
    assert dict(zip(pairs, counted["count"], strict=True)) == Counter(
        zip(labels, said, strict=True)
    )
    right = sum(n for (a, b), n in zip(pairs, counted["count"], strict=True) if a == b)
    assert right == int(found.correct["letters"].sum()) == 32


def test_a_plain_module_is_measured_the_same_way(world: World) -> None:
    meta = world.meta()
    plain = meta.materialize()
    mine = evaluate(plain, world.tasks, preprocess=PREPROCESS).accuracy
    assert mine == evaluate(meta, world.tasks).accuracy
    with pytest.raises(MdftError, match="preprocess must be given with a plain module"):
        evaluate(plain, world.tasks)


def test_a_module_in_training_mode_is_refused(world: World) -> None:
    plain = world.meta().materialize().train()
    with pytest.raises(MdftError, match="must be in eval mode, got training mode"):
        evaluate(plain, world.tasks, preprocess=PREPROCESS)


def test_a_task_without_labels_is_refused(world: World) -> None:
    with pytest.raises(MdftError, match="'shapes' must have labelled samples, got none"):
        evaluate(world.meta(), world.unlabelled)


def test_labels_out_of_range_are_refused(world: World) -> None:
    task = world.tasks[0]
    images, labels = task.evaluate
    bad = Task(task.name, task.class_names, task.head, task.adapt, (images, labels + 3))
    with pytest.raises(MdftError, match=r"must lie in \[0, 3\), got \d"):
        evaluate(world.meta(), [bad])


def test_evaluation_leaves_no_graph_and_no_change(world: World) -> None:
    meta = world.meta()
    before = meta.coefficients.detach().clone()
    evaluate(meta, world.tasks)
    assert meta.coefficients.grad is None
    assert torch.equal(meta.coefficients.detach(), before)


def test_interval_holds_the_difference_and_narrows_with_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for samples in (50, 5000):
        mine, other = (torch.rand(samples, generator=generator) < share for share in (0.8, 0.6))
        gap = difference_interval([mine], [other])
        assert gap["difference"] == pytest.approx(float(mine.float().mean() - other.float().mean()))
        assert gap["low"] < gap["difference"] < gap["high"]
        widths.append(gap["high"] - gap["low"])
    # The standard error of a difference of means: sqrt((.8 * .2 + .6 * .4) / n), times 2 * 1.96.
    assert widths[1] == pytest.approx(2 * 1.96 * (0.4 / 5000) ** 0.5, rel=0.15)
    assert widths[0] > 5 * widths[1]


def test_interval_is_paired() -> None:
    """Two models that are right on the same samples do not differ, however few there are."""
    hits = torch.tensor([True, False, True, True])
    assert difference_interval([hits], [hits]) == {"difference": 0.0, "low": 0.0, "high": 0.0}
