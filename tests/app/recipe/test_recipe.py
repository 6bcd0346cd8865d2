# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest

from mdft_fast.app.recipe import PRESETS, Recipe, RecipeError, parse
from mdft_fast.errors import MdftError

SAMPLE = """
version: 1
preset: default
pool: {base: pool/base.safetensors, models: pool/models}
backbone: {library: timm, name: vit_tiny_patch16_224, kwargs: {img_size: 64, num_classes: 0}}
preprocess: {size: 64, mean: 0.5, std: 0.5}
tasks:
  - name: mnist
    head: {file: pool/heads/mnist.safetensors, normalize: true}
    adapt: {npz: pool/data/mnist.npz, x: x_unlabelled}
    evaluate: {npz: pool/data/mnist.npz, x: x_test, y: y_test}
  - name: gtsrb
    head: {file: ../heads/gtsrb.safetensors, normalize: true}
    adapt: {npz: /data/gtsrb.npz, x: x_unlabelled}
    class_names: [stop, go]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "real.yaml"
    path.parent.mkdir()
    path.write_text(SAMPLE)
    return path


def problems(file: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file, overrides)
    assert isinstance(caught.value, MdftError)
    return caught.value.problems


def test_paths_start_at_the_recipes_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    recipe = Recipe.load(file.relative_to(Path.cwd()))
    assert recipe.pool.base == file.parent / "pool" / "base.safetensors"
    heads = [task.head.file for task in recipe.tasks if task.head]
    assert heads[1] == file.parent.parent / "heads" / "gtsrb.safetensors"
    assert recipe.tasks[1].adapt.npz == Path("/data/gtsrb.npz")
    assert recipe.output == file.parent / "runs" / "real"


def test_a_link_keeps_its_name(file: Path) -> None:
    (file.parent / "pool").mkdir()
    (file.parent / "blob").touch()
    (file.parent / "pool" / "base.safetensors").symlink_to(file.parent / "blob")
    assert Recipe.load(file).pool.base == file.parent / "pool" / "base.safetensors"


def test_a_key_that_is_absent_takes_the_presets_value(file: Path) -> None:
    recipe = Recipe.load(file, ["construct.optimizer.name=sgd"])
    default = PRESETS["default"]["construct"]
    assert recipe.construct.optimizer.name == "sgd"
    assert recipe.construct.optimizer.lr == default["optimizer"]["lr"]
    assert recipe.construct.model_dump(exclude={"optimizer"}) == {
        key: value for key, value in default.items() if key != "optimizer"
    }


@pytest.mark.parametrize("section", ["construct:", "construct:\n  filter:", "start: null"])
def test_an_empty_section_says_nothing(file: Path, section: str) -> None:
    before = Recipe.load(file)
    file.write_text(f"{SAMPLE}\n{section}\n")
    assert Recipe.load(file) == before


def test_presets_are_not_changed_by_use(file: Path) -> None:
    before = copy.deepcopy(PRESETS)
    Recipe.load(file, ["construct.filter.mu=0.7", "preset=entropy", "specialize.tasks=[mnist]"])
    assert before == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_every_key(file: Path, preset: str) -> None:
    recipe = Recipe.load(file, [f"preset={preset}"])
    written = recipe.model_dump(include=set(PRESETS[preset]), exclude_none=True)
    start, stated = written.pop("start"), {**PRESETS[preset]}.pop("start")
    assert written == {k: v for k, v in PRESETS[preset].items() if k != "start"}
    # Of a merge the dump says every field, the preset those that are not the merge's defaults.
    assert start == stated or stated.items() <= start.items()


def test_preset_paper_is_the_papers_method() -> None:
    assert PRESETS["paper"] == parse("""
        granularity: tensor
        start: 0.3
        construct:
          {steps: 100, batch: 16, draw: kept, holdout: 0.2,
           objective: {alpha: 1.0, entropy: true, reweight: as_written},
           filter: {enabled: true, mu: 0.4, entropy_of: teacher},
           optimizer: {name: adam, lr: 0.001, schedule: constant}}
        specialize:
          {tasks: all, steps: 20, batch: 64, representation: encoder, control: false,
           optimizer: {name: adam, lr: 0.05, schedule: constant}}
    """)


def test_presets_of_entropy_minimisation() -> None:
    adamerging = PRESETS["adamerging"]["construct"]
    assert adamerging["objective"] == {"alpha": 0.0, "entropy": True, "reweight": "off"}
    assert adamerging["filter"]["enabled"] is False
    assert PRESETS["entropy"] == {**PRESETS["adamerging"], "granularity": "task"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dump_loads_to_an_equal_recipe(file: Path, tmp_path: Path, preset: str) -> None:
    recipe = Recipe.load(
        file,
        [
            f"preset={preset}",
            "start=[0.3, -1e-5]",
            "construct.objective.reweight=off",
            "backbone.kwargs={a: off, b: '1e-3', c: 1e-3, d: null, e: [x, true]}",
            "output=elsewhere/run",
        ],
    )
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["recipe.yaml"]
    text = recipe.dump()
    keys = re.findall(r"^(\w+):", text, re.M)
    assert keys == [key for key in Recipe.model_fields if key in keys]
    assert "#" not in text


def test_a_recipe_is_frozen(file: Path) -> None:
    recipe = Recipe.load(file)
    with pytest.raises(pydantic.ValidationError):
        recipe.seed = 3
    with pytest.raises(pydantic.ValidationError):
        recipe.construct.steps = 3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sed=1", "sed: unknown key; did you mean 'seed'?"),
        ("construct.stpes=50", "construct.stpes: unknown key; did you mean 'steps'?"),
        ("construct.filter.mew=1", "construct.filter.mew: unknown key; did you mean 'mu'?"),
        ("tasks[1].heads.file=a", "tasks[1].heads: unknown key; did you mean 'head'?"),
        (
            "construct.optimizer.zzz=1",
            "construct.optimizer.zzz: unknown key; known are ['name', 'lr', 'schedule']",
        ),
    ],
)
def test_an_unknown_key_is_one_error_with_the_nearest(
    file: Path, assignment: str, message: str
) -> None:
    assert problems(file, assignment) == (message,)


def test_a_misspelt_key_that_is_needed_is_one_error(file: Path) -> None:
    file.write_text(SAMPLE.replace("name: mnist", "nane: mnist"))
    assert problems(file) == ("tasks[0].nane: unknown key; did you mean 'name'?",)
    file.write_text(SAMPLE.replace("pool: {", "poool: {"))
    assert problems(file) == ("poool: unknown key; did you mean 'pool'?",)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("version=2", "version: must be 1, got 2"),
        (
            "preset=papr",
            "preset: must be one of ['default', 'paper', 'adamerging', 'entropy'], "
            "got 'papr'; did you mean 'paper'?",
        ),
        ("seed=-1", "seed: must be at least 0, got -1"),
        ("seed=true", "seed: must be a whole number, got true"),
        ("construct.steps=many", "construct.steps: must be a whole number, got 'many'"),
        ("construct.steps=1.5", "construct.steps: must be a whole number, got 1.5"),
        ("construct.batch=0", "construct.batch: must be at least 1, got 0"),
        ("construct.holdout=1", "construct.holdout: must be below 1, got 1"),
        ("construct.optimizer.lr=0", "construct.optimizer.lr: must be above 0, got 0"),
        ("construct.optimizer.lr=.nan", "construct.optimizer.lr: must be a finite number, got nan"),
        (
            "construct.optimizer.name=adan",
            "construct.optimizer.name: must be one of ['adam', 'adamw', 'sgd'], got 'adan'; "
            "did you mean 'adam'?",
        ),
        ("construct.objective.entropy=1", "construct.objective.entropy: must be true or false"),
        ("construct.filter=0.4", "construct.filter: must be a mapping of ['enabled', 'mu', "),
        ("device=gpu", "device: must be auto, cpu, cuda or cuda:<number>, got 'gpu'"),
        ("start=high", "start: must be numbers or a merge's name, of ["),
        ("start=true", "start: must be one number, a list with one a vector, a merge's name or"),
        ("start=[0.3]", "start: must be one number or 2, one a vector, got 1"),
        ("start=ties", "start: ties: must be a merge, K vectors in and 1 out, got a transform"),
        ("start={metod: x}", "start: calibrate.metod: unknown key"),
        ("start={method: [wudi]}", "start: must be numbers or a merge's name, of ["),
        ("preprocess.size=64.5", "preprocess.size: must be one whole number or two"),
        ("preprocess.mean=[1, 2]", "preprocess.mean: must be one number or three"),
        ("backbone.kwargs=3", "backbone.kwargs: must be a mapping, got 3"),
        ("backbone.name=''", "backbone.name: must be text that is not empty, got ''"),
        ("pool.base=3", "pool.base: must be a path, got 3"),
        ("pool.weights=EMA", "pool.weights: must be one of ['ema', 'raw'], got 'EMA'"),
        ("pool.buffers=mine", "pool.buffers: must be one of ['same', 'base'], got 'mine'"),
        ("pool={folder: a, part: b}", "pool.part: must be absent, since pool.folder is a packed"),
        ("tasks=3", "tasks: must be a list, got 3"),
        ("tasks=[]", "tasks: must be a list of at least one"),
        ("tasks[0].name=3", "tasks[0].name: must be text of letters"),
        ("tasks[0].name=average", "tasks[0].name: 'average' is the mean over tasks"),
        ("tasks[0].name=calibrate", "tasks[0].name: must be another name, 'calibrate' is the"),
        ("tasks[0].name=../up", "tasks[0].name: must be text of letters"),
        ("specialize.tasks=al", "specialize.tasks: must be 'all', 'none' or a list of task names"),
        ("specialize.tasks=[gtsr]", "specialize.tasks[0]: must be a task's name, got 'gtsr'; did"),
        ("tasks[1].name=mnist", "tasks[1].name: 'mnist' is tasks[0]'s; must be unique"),
        ("tasks[0].evaluate.x=x_unlabelled", "tasks[0].adapt: these are the test images; say"),
        (
            "construct.filter={enabled: true, entropy_of: meta}",
            "construct.draw: must be 'batch' where",
        ),
        ("specialize.steps=0", "specialize.steps: must be at least 1, got 0"),
        *(
            (f"memory.budget={text}", "memory.budget: must be a size such as 4GB or 500MiB, or a")
            for text in ("lots", "0", "true")
        ),
        ("memory.micro_batch=0", "memory.micro_batch: must be at least 1, got 0"),
        (
            "memory.mode=layerwize",
            "memory.mode: must be one of ['auto', 'resident', 'layerwise', 'streamed'], "
            "got 'layerwize'; did you mean 'layerwise'?",
        ),
        (
            "memory.codec=int5",
            "memory.codec: must be one of ['fp32', 'bf16', 'fp16', 'int8', 'int4'], got 'int5'; "
            "did you mean 'int",
        ),
        ("precision=fp16", "precision: must be one of ['fp32', 'bf16'], got 'fp16'"),
        ("memory.checkpointing=maybe", "memory.checkpointing: must be true or false, got 'maybe'"),
        ("memory={cuda_graph: true, micro_batch: 4}", "cuda_graph: records a step's rows at once"),
        ("memory={cuda_graph: true, mode: streamed}", "cuda_graph: mode must be 'resident' or"),
        ("construct.objective={alpha: 0, entropy: false}", "construct: alpha 0 without entropy"),
        ("tasks[0].head=null", "tasks[0].head: is missing; needed with pool.base"),
        ("backbone=null", "backbone: is missing; needed with pool.base"),
        ("pool={}", "pool: must have base and models, or folder for a packed pool"),
        ("pool.models=null", "pool.models: is missing"),
        ("pool={folder: a, base: b}", "pool.base: must be absent, since pool.folder is a packed"),
    ],
)
def test_a_wrong_value_says_what_was_wanted_and_what_came(
    file: Path, assignment: str, message: str
) -> None:
    found = problems(file, assignment)
    assert len(found) == 1
    assert found[0].startswith(message)


BUDGETS = {"4GB": 4 * 10**9, "1.5 GiB": 3 * 2**29, "500mb": 5 * 10**8, "12345": 12345,
           "4G": 4 * 10**9, "4": 4}  # fmt: skip


@pytest.mark.parametrize("text", BUDGETS)
def test_a_budget_is_a_size(file: Path, text: str) -> None:
    assert Recipe.load(file, [f"memory.budget={text}"]).memory.budget == BUDGETS[text]


def test_several_errors_are_one_a_line(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file, ["seed=-1", "construct.stpes=1", "device=gpu"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{file}: 3 problems"
    assert [line.split(":")[0] for line in lines[1:]] == ["  device", "  construct.stpes", "  seed"]


def test_combinations_that_fit(file: Path) -> None:
    Recipe.load(file, ["construct.filter.entropy_of=meta", "construct.draw=batch"])
    Recipe.load(file, ["construct.filter.entropy_of=meta", "construct.filter.enabled=false"])
    Recipe.load(file, ["tasks[0].evaluate.x=x_unlabelled", "transductive=true"])
    Recipe.load(
        file, ["pool={folder: packed}", "backbone=null", "preprocess=null", "tasks[0].head=null"]
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("construct.steps", "must be key=value, as in construct.steps=50"),
        ("=5", "must be key=value"),
        ("tasks[7].name=a", "tasks is a list: '7' must be a number from 0 to 1"),
        ("version.a=1", "version is no mapping but 1"),
        ("start=[1", "line 1, column 3"),
    ],
)
def test_overrides_that_lead_nowhere(file: Path, assignment: str, message: str) -> None:
    (found,) = problems(file, assignment)
    assert message in found
    assert repr(assignment) in found


def test_overrides_are_yaml(file: Path) -> None:
    recipe = Recipe.load(
        file,
        [
            "construct.optimizer.lr=1e-3",
            "construct.objective.reweight=off",
            "specialize.tasks=none",
            "tasks.1.name=signs",
            "memory.codec=bf16",
        ],
    )
    assert recipe.construct.optimizer.lr == 1e-3
    assert recipe.construct.objective.reweight == "off"
    assert recipe.specialize.tasks == "none"
    assert recipe.tasks[1].name == "signs"
    assert recipe.memory.codec == "bf16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: [1", "line "),
        ("seed: 1\nseed: 2", "line 2, column 1: key 'seed' stands twice"),
        ("- a", "must be a mapping of keys"),
        ("", "must be a mapping of keys"),
    ],
)
def test_what_is_no_recipe(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    (found,) = problems(file)
    assert found.startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: not readable: No such file"):
        Recipe.load(tmp_path / "none.yaml")


def test_check_files_lists_all_that_is_missing(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file).check_files()
    keys = [line.split(":")[0] for line in caught.value.problems]
    assert keys == [
        *("pool.base", "pool.models", "tasks[0].head.file", "tasks[0].adapt.npz"),
        *("tasks[0].evaluate.npz", "tasks[1].head.file", "tasks[1].adapt.npz"),
    ]


def test_from_mapping_leaves_the_mapping_alone(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "version": 1,
        "pool": {"folder": "packed"},
        "tasks": [{"name": "a", "adapt": {"npz": "a.npz"}}],
        "output": "run",
    }
    before = copy.deepcopy(content)
    recipe = Recipe.from_mapping(content, folder=tmp_path)
    assert content == before
    assert recipe.pool.folder == tmp_path / "packed"
    assert recipe.tasks[0].adapt.x == "x"


LOL = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + chr(ord(c) - 1)] * 10)}]\n" for c in "bcdefghi"
)
NO_RECIPES = {
    LOL: r"line \d, column \d: must be at most 100,000 values, aliases written out",
    "a: &a [*a]": r"line 1, column 4: an alias must not lie in what it stands for",
    "a: " + "[" * 60 + "]" * 60: "must be at most 50 deep",
    "a: " + "[" * 5000 + "]" * 5000: "must be at most 50 deep",
    "? [a, b]\n: 1": r"line 1, column 3: a key must be a word; is it a template's",
    "pool: {base: {{ base }}}": "a key must be a word",
    "a: !!timestamp abc": r"line 1, column 4: must be timestamp, got 'abc'",
    "a: !!bool abc": r"line 1, column 4: must be bool, got 'abc'",
    f"a: {'9' * 400}": r"line 1, column 4: a whole number must be below 2\^63, got 9999",
}


@pytest.mark.parametrize("text", NO_RECIPES, ids=range(len(NO_RECIPES)))
def test_what_no_recipe_says_is_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=NO_RECIPES[text]):
        Recipe.load(tmp_path / "recipe.yaml")
