# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from mdft_fast.app.recipe.value_types import TaskName
from mdft_fast.data import NpzSource, Task, load_labelled, read_class_names
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool
from tests.pool.conftest import SHARED, Parts

# README of the real pool: top-1 in per cent on the files' test subset, to one decimal.
INDIVIDUAL = {
    "omniglot242": 47.7,
    "gtsrb": 74.3,
    "aid30": 83.2,
    "mnist": 97.5,
    "fashion_mnist": 84.0,
    "sign_digits": 94.7,
    "dtd10": 74.7,
    "trashnet": 84.8,
}


def test_a_weight_becomes_a_linear_head() -> None:
    weight = torch.ones(2, 3)
    task = Task("t", np.array(["a", "b"]), weight, np.zeros((1, 2, 2, 3), np.uint8))
    assert task.class_names == ("a", "b")
    assert task.head.weight is weight
    assert not task.head.normalize
    assert task.evaluate is None


def test_mistakes_are_named() -> None:
    with pytest.raises(MdftError, match=r"task 't': head must have one row for each of 3 class"):
        Task("t", ["a", "b", "c"], torch.ones(2, 3), [])
    with pytest.raises(
        MdftError, match=r"task 't': class_names must be one name a class, got 'ab'"
    ):
        Task("t", "ab", Head(torch.ones(2, 3)), [])
    with pytest.raises(MdftError, match=r"head: weight must be floating \[C, D\], got \[3\]"):
        Task("t", ["a"], torch.ones(3), [])


@pytest.mark.parametrize("name", ["a+b", "0.5_x-y", "+a", "a b", "a/b", "é", "", "a\n", "../a"])
def test_task_and_recipe_take_the_same_names(name: str) -> None:
    recipe = pydantic.TypeAdapter(TaskName)
    if name in ("a+b", "0.5_x-y"):
        assert Task(name, ["a"], torch.ones(1, 3), []).name == recipe.validate_python(name) == name
        return
    with pytest.raises(MdftError, match=re.escape(f"task {name!r}: a name must be letters")):
        Task(name, ["a"], torch.ones(1, 3), [])
    with pytest.raises(pydantic.ValidationError, match="must be text of letters"):
        recipe.validate_python(name)


def _accuracy(backbone: Any, arena: torch.Tensor, pool: Pool, task: Task) -> float:
    state = dict(zip(pool.column_names, pool.layout.views(arena), strict=True))
    assert not backbone.load_state_dict(state, strict=True).missing_keys
    samples, labels = load_labelled(task.evaluate, pool.preprocess, len(task.class_names))
    with torch.inference_mode():
        logits = pool.heads[task.name](backbone(samples.batch(torch.arange(len(samples)))))
    return 100 * float((logits.argmax(-1) == labels).double().mean())


@pytest.fixture(scope="module")
def eight(real: Parts, real_pool: Pool) -> tuple[Any, Pool, list[Task]]:
    """The backbone, the pool and the eight tasks beside the repository."""
    files = {name: SHARED / f"data/{name}.npz" for name in INDIVIDUAL}
    sources = {n: (NpzSource(f, "x_unlabelled"), NpzSource(f, "x_test", "y_test"))
               for n, f in files.items()}  # fmt: skip
    tasks = [
        Task(name, read_class_names(files[name]), real_pool.heads[name], *sources[name])
        for name in INDIVIDUAL
    ]
    return real.options["backbone"].eval(), real_pool, tasks


@pytest.mark.parametrize(
    "name", [n if n == "dtd10" else pytest.param(n, marks=pytest.mark.slow) for n in INDIVIDUAL]
)
def test_a_real_models_accuracy_comes_out(name: str, eight: Any) -> None:
    backbone, pool, tasks = eight
    k = pool.names.index(name)
    arena = pool.base + pool.vectors.codes[k]
    accuracy = _accuracy(backbone, arena, pool, tasks[k])
    assert accuracy == pytest.approx(INDIVIDUAL[name], abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "average", "tolerance"),
    [(0.0, 45.87, 0.006), (0.3, 54.05, 0.13)],  # one image of 300 to 400 is 0.03 to 0.04
)
def test_real_averages_come_out(start: float, average: float, tolerance: float, eight: Any) -> None:
    backbone, pool, tasks = eight
    arena = pool.base + start * pool.vectors.codes.sum(0)
    accuracies = [_accuracy(backbone, arena, pool, task) for task in tasks]
    assert np.mean(accuracies) == pytest.approx(average, abs=tolerance)
