# SPDX-License-Identifier: Apache-2.0
"""The code on the pages runs, the messages on them are raised, and so does the notebook."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mdft_fast
from mdft_fast import MdftError, Pool, Task
from mdft_fast.app.recipe import Recipe, parse
from mdft_fast.data import compare_class_names
from mdft_fast.model import build_backbone
from tests.docs.pages import DOCS, README, ROOT, blocks, rows, run
from tests.world import PREPROCESS, Encoder, World, make_world

NOTEBOOK = ROOT / "examples" / "own_model.ipynb"


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def names_of(world: World) -> dict[str, Any]:
    """What the text of README and of the operators' page says is given."""
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    heads = [task.head for task in world.tasks]
    with torch.no_grad():
        teachers = [
            head(torch.func.functional_call(world.backbone, state, (x,)))
            for state, head, x in zip(world.models, heads, images, strict=True)
        ]
    data = {
        task.name: {"classes": task.class_names, "head": task.head, "unlabelled": task.adapt,
                    "test_images": task.evaluate[0], "test_labels": task.evaluate[1]}
        for task in world.tasks
    }  # fmt: skip
    return {
        "encoder": world.backbone, "base": world.base, "finetuned": world.models,
        "heads": heads, "images": images, "teacher_logits": teachers, "data": data,
    }  # fmt: skip


def test_readmes_whole_way_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(world.base)
    names = run(blocks(README, "python"), names_of(world))
    assert isinstance(names["model"], Encoder)
    assert (tmp_path / "meta.json").is_file()
    meta = names["meta"]
    weights = dict(zip(meta.layout.columns, meta.weights(), strict=True))
    for name, value in names["model"].named_parameters():
        assert torch.equal(value, weights[name])
    assert all(torch.equal(world.base[name], before[name]) for name in before)


def test_readmes_recipe_is_one() -> None:
    (text,) = blocks(README, "yaml")
    recipe = Recipe.from_mapping({**parse(text), "output": "runs/recipe"})
    assert [task.name for task in recipe.tasks] == ["mnist", "dtd10"]


def test_code_of_the_operators_page_runs(world: World) -> None:
    page = DOCS / "operators.md"
    code, compared = blocks(page, "python"), page.read_text().split("## The arena")[0]
    first = compared.count("```python")
    names = run(code[:first], names_of(world))
    assert float(names["loss"].detach()) > 0.1
    torch.testing.assert_close(names["fused"], names["loss"])
    torch.testing.assert_close(names["coefficients"].grad, names["lam"].grad, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(names["again"][name], x) for name, x in names["merged"].items())

    names = run(code[first:])
    assert names["coefficients"].grad.shape == (3, 2)
    assert names["flat"].shape == (names["layout"].elements,)
    assert [names["weight"].shape, names["bias"].shape] == [(300, 10), (10,)]
    assert names["dots"].shape == (3, 2)
    assert names["logits"][1].grad is not None


def test_code_of_other_pages_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run(blocks(DOCS / "heads.md", "python"))["templates"]("dtd")) == 8
    (tmp_path / "recipe.yaml").write_text(blocks(README, "yaml")[0])
    assert run(blocks(DOCS / "recipes.md", "python"))["recipe"].construct.steps == 50
    names = {"encoder": world.backbone, "pool": world.pool}
    assert run(blocks(DOCS / "memory.md", "python"), names)["meta"].mode == "layerwise"
    run(blocks(DOCS / "api/index.md", "python"))
    names = run(blocks(DOCS / "methods.md", "python"), {"pool": world.pool})
    assert [method.split("(")[0] for method in names["pool"].methods] == ["ties", "lines"]
    assert names["Level"]().transform(torch.tensor([[3.0], [5]]), None).tolist() == [[4], [4]]
    names = {"tasks": world.tasks, "meta": world.meta(), "evaluate": mdft_fast.evaluate}
    run(blocks(DOCS / "own-checkpoints.md", "python"), names)
    assert "letters {'letters': 0.8}" in capsys.readouterr().out  # every fifth label is wrong


def test_code_and_message_of_the_data_page() -> None:
    page = DOCS / "data.md"
    names = run(blocks(page, "python"))
    with pytest.raises(MdftError, match=r"data must hold stanford_cars/devkit/cars_meta.mat"):
        names["cars"].listing("train")
    for line in blocks(page, "yaml")[0].splitlines():
        task = {"name": "a", **parse(line)}
        Recipe.from_mapping(
            {"version": 1, "pool": {"folder": "p"}, "tasks": [task], "output": "run"}
        )
    given = ("airplane", "airport"), "resisc45", ("airplane", "baseball diamond")
    with pytest.raises(MdftError) as found:
        compare_class_names(*given, "task 'resisc45': recipe")
    assert blocks(page, "text") == [f"{found.value}\n"]


# The notebook.


@functools.cache
def cells() -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    with plt.ioff(), torch.random.fork_rng(devices=[]):
        names = run(["".join(cell["source"]) for cell in cells()])
    plt.close("all")
    accuracy = names["accuracy"]
    assert set(accuracy["individual"]) == {"noisy", "inverted", "turned"}
    average = {method: sum(values.values()) / 3 for method, values in accuracy.items()}
    assert average["individual"] > average["task arithmetic"] > average["base"]
    assert average["specialized (stage 2)"] > average["task arithmetic"]
    assert "card:" in capsys.readouterr().out


def test_the_notebook_was_executed_in_order_and_without_errors() -> None:
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {o["output_type"] for o in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2


# The messages.


def mistakes(world: World) -> dict[str, Callable[[], Any]]:
    """What the page of your own checkpoints says can go wrong."""
    first, *others = world.models
    task = world.tasks[0]

    def pool(change: Any = None, **options: Any) -> Any:
        models = [first if change is None else change, *others]
        arguments = {"base": world.base, "checkpoints": models, "tasks": world.tasks,
                     "backbone": world.backbone, "preprocess": PREPROCESS} | options  # fmt: skip
        return Pool.from_checkpoints(**arguments)

    def construct(adapt: Any, **options: Any) -> Any:
        changed = Task(task.name, task.class_names, task.head, adapt)
        config = mdft_fast.ConstructConfig(steps=1, **options)
        return mdft_fast.construct(world.meta(), [changed], config)

    def batch_norm() -> Any:
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        encoder = nn.Sequential(*layers)
        model = copy.deepcopy(encoder)
        model[1].running_mean += 1
        tasks = [Task("shapes", ["a", "b"], torch.randn(2, 8), np.zeros((4, 8, 8), np.uint8))]
        return pool(base=encoder, checkpoints=[model], tasks=tasks, backbone=encoder)

    wide = Task(task.name, task.class_names, torch.randn(3, 20), task.adapt)
    card = mdft_fast.CoefficientCard.of(world.meta())
    return {
        "names": lambda: pool({k.replace("stem", "steam"): v for k, v in first.items()}),
        "extra": lambda: pool({**first, "head.weight": torch.zeros(3, 16)}),
        "dtype": lambda: pool({k: v.half() for k, v in first.items()}),
        "BatchNorm": batch_norm,
        "shape": lambda: pool({**first, "out.weight": torch.zeros(16, 9)}),
        "the base itself": lambda: pool(world.base),
        "twice": lambda: pool(others[0]),
        "format": lambda: pool(ROOT / "pyproject.toml"),
        "nested": lambda: pool({"state_dict": first}),
        "features": lambda: pool(checkpoints=[first], tasks=[wide]),
        "classes": lambda: Task("shapes", ["a", "b"], torch.randn(3, 16), task.adapt),
        "size": lambda: construct(np.zeros((4, 16, 16, 3), np.uint8)),
        "channels": lambda: construct(np.zeros((4, 3, 8, 8), np.uint8)),
        "labels": lambda: construct((task.adapt, np.zeros(40))),
        "filter": lambda: construct(task.adapt, mu=0.0),
        "name": lambda: build_backbone({"library": "timm", "name": "vit_tiny"}),
        "card": lambda: card.meta_model(make_world(1).pool, world.backbone),
    }


def message(mistake: Callable[[], Any]) -> str:
    with pytest.raises(MdftError) as found:
        mistake()
    return str(found.value)


def test_messages_of_the_checkpoints_page_are_what_is_raised(world: World) -> None:
    pytest.importorskip("timm")
    table = rows(DOCS / "own-checkpoints.md", "| message | what to do |")
    quoted = [row[0].strip("`") for row in table]
    raised = {name: message(mistake) for name, mistake in mistakes(world).items()}
    for name, text in raised.items():
        assert sum(text.endswith(q) or (name == "card" and q in text) for q in quoted) == 1, text
    assert len(quoted) == len(raised)


def test_messages_of_the_recipes_page_are_what_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(blocks(README, "yaml")[0])
    text = message(lambda: Recipe.load(file, ["construct.stepz=3", "memory.codec=int5"]))
    expected, _ = blocks(DOCS / "recipes.md", "text")
    lines = text.replace(str(file), "recipe.yaml").splitlines()
    assert sorted(lines) == sorted(expected.splitlines())
