# SPDX-License-Identifier: Apache-2.0
"""The pages say what the code does: code runs; links, keys, names and messages exist."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import nn

import mdft_fast
from mdft_fast import MdftError, Pool, Task
from mdft_fast.app.recipe import PRESETS, Recipe
from mdft_fast.model import build_backbone
from tests.world import PREPROCESS, Encoder, World, make_world

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
NOTEBOOK = ROOT / "examples" / "own_model.ipynb"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


# The code of the pages.


def readme_names(world: World) -> dict[str, Any]:
    """What README's text says is given."""
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    heads = [task.head for task in world.tasks]
    teachers = []
    for state, head, x in zip(world.models, heads, images, strict=True):
        with torch.no_grad():
            teachers.append(head(torch.func.functional_call(world.backbone, state, (x,))))
    data = {
        task.name: {
            "class_names": task.class_names,
            "head": task.head,
            "unlabelled": task.adapt,
            "test_images": task.evaluate[0],
            "test_labels": task.evaluate[1],
        }
        for task in world.tasks
    }
    return {
        "encoder": world.backbone, "base": world.base, "finetuned": world.models,
        "heads": heads, "images": images, "teacher_logits": teachers, "data": data,
    }  # fmt: skip


def test_readmes_torch_and_ours_agree(world: World) -> None:
    names = readme_names(world)
    plain, ours = blocks(README, "python")[:2]
    exec(plain, names)
    exec(ours, names)
    assert float(names["loss"].detach()) > 0.1
    torch.testing.assert_close(names["fused"], names["loss"])
    torch.testing.assert_close(names["coefficients"].grad, names["lam"].grad, rtol=1e-3, atol=1e-6)


def test_readmes_whole_way_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(world.base)
    names = readme_names(world)
    (way,) = blocks(README, "python")[2:]
    exec(way, names)
    assert isinstance(names["model"], Encoder)
    assert (tmp_path / "meta.json").is_file()
    for name, value in names["model"].named_parameters():
        assert torch.equal(value, dict(zip(names["meta"].layout.columns, names["meta"].weights(),
                                           strict=True))[name])  # fmt: skip
    assert all(torch.equal(world.base[name], before[name]) for name in before)


def test_readmes_recipe_is_one() -> None:
    from mdft_fast.app.recipe import parse

    (text,) = blocks(README, "yaml")
    recipe = Recipe.from_mapping({**parse(text), "output": "runs/recipe"})
    assert [task.name for task in recipe.tasks] == ["mnist", "dtd10"]


def test_code_of_the_operators_page_runs() -> None:
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs/operators.md", "python"):
        exec(block, names)
    assert names["coefficients"].grad.shape == (3, 2)
    assert names["flat"].shape == (names["layout"].elements,)
    assert [names["weight"].shape, names["bias"].shape] == [(300, 10), (10,)]
    assert names["dots"].shape == (3, 2)
    assert names["logits"][1].grad is not None


def test_code_of_the_heads_page_runs() -> None:
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs/heads.md", "python"):
        exec(block, names)
    assert len(names["templates"]("dtd")) == 8


def test_names_of_the_heads_page_exist() -> None:
    from mdft_fast import heads

    cells = [row[0] for row in rows(ROOT / "docs/heads.md", "| name | what it gives |")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)\(", cell)]
    assert len(named) > 6
    assert all(hasattr(heads, name) for name in named), named


def test_code_of_the_checkpoints_page_runs(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks(ROOT / "docs/own-checkpoints.md", "python")
    exec(block, {"tasks": world.tasks, "meta": world.meta(), "evaluate": mdft_fast.evaluate})
    assert "letters {'letters': 0.8}" in capsys.readouterr().out  # every fifth label is wrong


def test_code_of_the_recipes_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(blocks(README, "yaml")[0])
    names: dict[str, Any] = {}
    (block,) = blocks(ROOT / "docs/recipes.md", "python")
    exec(block, names)
    assert names["recipe"].construct.steps == 50


def test_code_and_message_of_the_data_page() -> None:
    from mdft_fast.app.recipe import parse
    from mdft_fast.data import compare_class_names

    page, names = ROOT / "docs/data.md", dict[str, Any]()
    (block,) = blocks(page, "python")
    exec(block, names)
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


@functools.cache
def notebook() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return cells


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {}
    with plt.ioff(), matplotlib_backend("agg"), torch.random.fork_rng(devices=[]):
        for cell in notebook():
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        plt.close("all")
    accuracy = names["accuracy"]
    assert set(accuracy["individual"]) == {"noisy", "inverted", "turned"}
    average = {method: sum(values.values()) / 3 for method, values in accuracy.items()}
    assert average["individual"] > average["task arithmetic"] > average["base"]
    assert average["specialized (stage 2)"] > average["task arithmetic"]
    assert "card:" in capsys.readouterr().out


@contextlib.contextmanager
def matplotlib_backend(name: str) -> Iterator[None]:
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use(name)
    try:
        yield
    finally:
        matplotlib.use(before)


def test_the_notebook_was_executed_in_order_and_without_errors() -> None:
    cells = [cell for cell in notebook() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c["outputs"]) >= 2


# What the pages name.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_place_of_a_machine(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|mnt)\b", text)


def test_the_notebook_names_no_place_of_a_machine() -> None:
    assert not re.search(r"(?<![\w./+])/(home|root|work|tmp|Users|mnt)/", NOTEBOOK.read_text())


def test_every_public_name_is_in_the_pages() -> None:
    text = "\n".join(page.read_text() for page in PAGES) + NOTEBOOK.read_text()
    absent = [name for name in mdft_fast.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not absent


def test_tests_that_pages_name_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/method.md").read_text())
    assert len(named) > 15
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, name


def test_files_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:mdft_fast|csrc|tests|examples)/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_commands_and_options_that_pages_name_exist() -> None:
    cli = pytest.importorskip("mdft_fast.app.cli")
    import typer

    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`mdft ([a-z]+)", text):
            # named as what is not there yet
            assert name in commands or (page, name) == (README, "plan"), name
        for line in "".join(blocks(page, "sh")).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["mdft"]:
                known = {o for p in commands[words[1]].params for o in p.opts}
                assert {w for w in words if w.startswith("-")} <= known, line


# The recipe's keys.


def walk(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a model as the page writes it, with its field."""
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        if inner:
            many = "tuple" in str(field.annotation)
            yield from walk(inner[0], f"{above}{name}{'[]' if many else ''}.")
        else:
            yield f"{above}{name}", field


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)


def rows(page: Path, first: str) -> list[list[str]]:
    """Returns the cells of a page's table that begins with a row ``first``."""
    text = page.read_text().split(first)[1].split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()[2:]
    ]


def shown(value: Any) -> str:
    """Returns a default as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return {(): "[]", (("dict",),): "{}"}.get(value, str(value))


PLAIN = "| key | type | default | meaning |"
PRESET = "| key | type | `default` | `paper` | `adamerging` | `entropy` | meaning |"


def test_every_key_is_documented_and_no_other() -> None:
    page = ROOT / "docs/recipes.md"
    documented = [row[0].strip("`") for row in (*rows(page, PLAIN), *rows(page, PRESET))]
    assert len(documented) == len(set(documented))
    assert set(documented) == {key for key, _ in walk(Recipe)}


def test_plain_defaults_are_the_models() -> None:
    fields = dict(walk(Recipe))
    for key, _, default, _ in rows(ROOT / "docs/recipes.md", PLAIN):
        name, field = key.strip("`"), fields[key.strip("`")]
        if name == "output":
            continue  # made of the recipe's name
        if field.default_factory is not None:
            expected = "`{}`"
        else:
            expected = "–" if field.is_required() else f"`{shown(field.default)}`"  # noqa: RUF001
        assert default == expected, name


def test_preset_columns_are_the_presets() -> None:
    table = rows(ROOT / "docs/recipes.md", PRESET)
    assert [name.strip("`") for name in PRESET.split(" | ")[2:-1]] == list(PRESETS)
    for key, _, *cells, _ in table:
        for cell, preset in zip(cells, PRESETS.values(), strict=True):
            value: Any = preset
            for part in key.strip("`").split("."):
                value = value[part]
            assert cell == f"`{shown(value)}`", f"{key}: write `{shown(value)}` there"
    assert len(table) == sum(1 for _ in leaves(PRESETS["default"]))


def leaves(values: dict[str, Any]) -> Iterator[Any]:
    for value in values.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


# The messages.


def mistakes(world: World) -> dict[str, Callable[[], Any]]:
    """What the page of your own checkpoints says can go wrong."""
    first, *others = world.models
    task = world.tasks[0]

    def pool(change: Any = None, **options: Any) -> Any:
        models = [first if change is None else change, *others]
        given = {"base": world.base, "checkpoints": models, "tasks": world.tasks,
                 "backbone": world.backbone, "preprocess": PREPROCESS} | options  # fmt: skip
        return Pool.from_checkpoints(**given)

    def construct(adapt: Any, **options: Any) -> Any:
        given = Task(task.name, task.class_names, task.head, adapt)
        config = mdft_fast.ConstructConfig(steps=1, **options)
        return mdft_fast.construct(world.meta(), [given], config)

    def batch_norm() -> Any:
        encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        model = copy.deepcopy(encoder)
        model[1].running_mean += 1
        images = np.zeros((4, 8, 8), np.uint8)
        tasks = [Task("shapes", ["a", "b"], torch.randn(2, 8), images)]
        return Pool.from_checkpoints(
            encoder, [model], tasks, backbone=encoder, preprocess=PREPROCESS
        )

    wide = Task(task.name, task.class_names, torch.randn(3, 20), task.adapt)
    card = mdft_fast.CoefficientCard.of(world.meta())
    return {
        "names": lambda: pool({k.replace("stem", "steam"): v for k, v in first.items()}),
        "extra": lambda: pool(base={**world.base, "head.weight": torch.zeros(3, 16)}),
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


def test_messages_of_the_checkpoints_page_are_what_is_raised(world: World) -> None:
    pytest.importorskip("timm")
    table = rows(ROOT / "docs/own-checkpoints.md", "| message | what to do |")
    quoted = [row[0].strip("`") for row in table]
    raised = {}
    for name, mistake in mistakes(world).items():
        with pytest.raises(MdftError) as found:
            mistake()
        raised[name] = str(found.value)
    for name, text in raised.items():
        assert sum(text.endswith(q) or (name == "card" and q in text) for q in quoted) == 1, text
    assert len(quoted) == len(raised)


def test_messages_of_the_recipes_page_are_what_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(blocks(README, "yaml")[0])
    with pytest.raises(MdftError) as found:
        Recipe.load(file, ["construct.stepz=3", "memory.codec=int5"])
    wanted, _ = blocks(ROOT / "docs/recipes.md", "text")
    lines = str(found.value).replace(str(file), "recipe.yaml").splitlines()
    assert sorted(lines) == sorted(wanted.splitlines())
