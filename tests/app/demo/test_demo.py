# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("open_clip", reason="the demo's model is open_clip's")
pytest.importorskip("sklearn", reason="the demo's digits are scikit-learn's")

from safetensors.torch import load_file

from mdft_fast import files as whole
from mdft_fast.app import demo
from mdft_fast.app.demo import demo_pool as build
from mdft_fast.app.demo import glyphs as images
from mdft_fast.app.demo import pool_files as files
from mdft_fast.app.demo import training as train
from mdft_fast.app.recipe import Recipe
from mdft_fast.errors import MdftError
from tests.conftest import contents

TINY = demo.DemoSizes(
    width=32, layers=1, mixture=200, base_steps=3, base_batch=16, train=105, test=40,
    unlabelled=30, steps=3, batch=16, tasks=("digits", "glyphs", "counts"),
)  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure_pool(tmp_path_factory.mktemp("demo") / "pool", sizes=TINY)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every build stop, as by Ctrl-C, after it has written the first task."""
    real = files.write_task

    def stop(folder: Path, part: files.TaskFiles) -> None:
        real(folder, part)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_task", stop)


def manifest_of(folder: Path) -> Any:
    notes = (folder / name for name in ("checkpoints.json", "pool.json"))  # an older demo's
    return json.loads(next(filter(Path.is_file, notes)).read_text(encoding="utf-8"))


# --- the pool's files -------------------------------------------------------------------------


def test_pool_is_laid_out_as_promised(pool: Path) -> None:
    names = set(contents(pool))
    per_task = {
        f"{kind}/{task}.{end}"
        for task in TINY.tasks
        for kind, end in (("models", "safetensors"), ("heads", "safetensors"), ("data", "npz"))
    }
    single = {"base.safetensors", "checkpoints.json", "recipe.yaml", "demo.json"}
    assert names == per_task | single
    base = load_file(pool / "base.safetensors")
    for task in TINY.tasks:
        model = load_file(pool / "models" / f"{task}.safetensors")
        assert model.keys() == base.keys()
        assert all(tensor.dtype == torch.float16 for tensor in model.values())
        assert any(not torch.equal(model[name], base[name]) for name in base)
    assert sorted(path.name for path in pool.parent.iterdir()) == ["pool"]


def test_manifest_and_files_agree(pool: Path) -> None:
    manifest = manifest_of(pool)
    assert set(manifest) == {"architecture", "input", "head", "base", "tasks"}
    assert manifest["architecture"]["name"] == "VisionTransformer"
    assert [task["name"] for task in manifest["tasks"]] == list(TINY.tasks)
    for task in manifest["tasks"]:
        name, classes = task["name"], task["classes"]
        weight = load_file(pool / "heads" / f"{name}.safetensors")["weight"]
        torch.testing.assert_close(
            weight.float().norm(dim=1), torch.full((classes,), 20.0), rtol=1e-2, atol=0
        )
        with np.load(pool / "data" / f"{name}.npz", allow_pickle=False) as data:
            shape = (images.SIZE, images.SIZE, 3)
            assert set(data) == {"x_unlabelled", "x_test", "y_test", "class_names"}
            assert data["x_unlabelled"].shape == (task["unlabelled"], *shape)
            assert data["x_test"].shape == (task["test"], *shape)
            assert data["x_test"].dtype == data["x_unlabelled"].dtype == np.uint8
            assert data["y_test"].dtype == np.int64
            assert len(data["class_names"]) == classes == weight.shape[0]


def test_recipe_reads_back(pool: Path) -> None:
    recipe: dict[str, Any] = yaml.safe_load((pool / "recipe.yaml").read_text(encoding="utf-8"))
    manifest = manifest_of(pool)
    assert recipe["backbone"] == manifest["architecture"]
    assert [task["name"] for task in recipe["tasks"]] == list(TINY.tasks)
    assert "output" not in recipe
    for task in recipe["tasks"]:
        for part, key in (("head", "file"), ("adapt", "npz"), ("evaluate", "npz")):
            assert (pool / task[part][key]).is_file()
    Recipe.load(pool / "recipe.yaml").check_files()
    tower = train.make_tower(recipe["backbone"]["kwargs"])
    tower.load_state_dict(load_file(pool / "base.safetensors"))


def test_same_build_gives_same_files(pool: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)  # the caller's seed plays no part
    again = demo.ensure_pool(tmp_path / "again", sizes=TINY)
    assert contents(again) == contents(pool)


def test_finished_pool_is_not_built_again(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    assert demo.ensure_pool(pool, sizes=TINY) == pool


def test_settings_of_the_caller_stay(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            demo.ensure_pool(tmp_path / "pool", sizes=TINY)
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


# --- an interrupted, changed or foreign folder --------------------------------------------------


@pytest.mark.usefixtures("interrupted")
def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        demo.ensure_pool(tmp_path / "deep" / "pool", sizes=TINY)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.usefixtures("interrupted")
def test_interrupted_rebuild_keeps_what_was_there(tmp_path: Path) -> None:
    old = tmp_path / "pool"
    old.mkdir()
    (old / files.STAMP).write_text("{}", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        demo.ensure_pool(old, sizes=TINY)
    assert contents(tmp_path) == {"pool/demo.json": b"{}"}


def test_changed_builder_rebuilds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.ensure_pool(tmp_path / "pool", sizes=TINY)
    monkeypatch.setattr(build, "VERSION", build.VERSION + 1)
    assert not demo.is_finished(folder, TINY)
    lines: list[str] = []
    demo.ensure_pool(folder, sizes=TINY, progress=lines.append)
    assert demo.is_finished(folder, TINY)
    assert len(lines) == 2 + len(TINY.tasks) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


@pytest.mark.parametrize("damage", ["cut", "missing", "stamp"])
def test_damaged_pool_is_not_taken_for_finished(pool: Path, tmp_path: Path, damage: str) -> None:
    for name, data in contents(pool).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert demo.is_finished(tmp_path, TINY)
    assert not demo.is_finished(tmp_path)  # other sizes
    hurt = tmp_path / ("demo.json" if damage == "stamp" else "models/glyphs.safetensors")
    if damage == "missing":
        hurt.unlink()
    else:
        hurt.write_bytes(hurt.read_bytes()[:-9])
    assert not demo.is_finished(tmp_path, TINY)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(MdftError, match="must be new or hold an earlier demo, got"):
        demo.ensure_pool(tmp_path, sizes=TINY)
    with pytest.raises(MdftError, match="must be a folder, got the file"):
        demo.ensure_pool(tmp_path / "thesis.txt", sizes=TINY)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_of_two_builds_at_once_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, meet = whole._put_in_place, threading.Barrier(2, timeout=120)

    def together(*arguments: Any) -> None:
        meet.wait()
        real(*arguments)

    monkeypatch.setattr(whole, "_put_in_place", together)
    monkeypatch.setattr(build, "_build", _instant_build)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(demo.ensure_pool, [tmp_path / "pool"] * 2))
    assert demo.is_finished(tmp_path / "pool")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


def _instant_build(folder: Path, sizes: demo.DemoSizes, progress: build.Progress) -> None:
    (folder / "base.safetensors").write_bytes(b"weights")
    files.finish(folder, build.stamp(sizes), {})


def test_missing_dependency_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_MODULES", ("no_such_module",))
    with pytest.raises(
        MdftError, match=r"demo: needs no_such_module; pip install 'mdft-fast\[demo\]'"
    ):
        demo.ensure_pool(tmp_path / "pool", sizes=TINY)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_checked() -> None:
    with pytest.raises(MdftError, match=r"tasks must be among .*, got \['mnist'\]"):
        demo.DemoSizes(tasks=("mnist",))
    with pytest.raises(MdftError, match="unlabelled must be a part of train, got 4000"):
        demo.DemoSizes(unlabelled=4000)
    with pytest.raises(MdftError, match="train must hold every class of glyphs, 105, got 104"):
        demo.DemoSizes(train=104, unlabelled=30)


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    last = f"demo-v{build.VERSION}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("MDFT_CACHE", raising=False)
    assert demo.default_folder() == tmp_path / "xdg" / "mdft_fast" / last
    monkeypatch.setenv("MDFT_CACHE", str(tmp_path / "own"))
    assert demo.default_folder() == tmp_path / "own" / last
    monkeypatch.delenv("MDFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo.default_folder() == Path.home() / ".cache" / "mdft_fast" / last


# --- the published pool -------------------------------------------------------------------------


def test_real_pool_leaves_something_to_win() -> None:
    folder = demo.default_folder()
    if not demo.is_finished(folder):
        pytest.skip(f"the demo is not built: {folder.name} is absent from the cache; `mdft demo`")
    manifest = manifest_of(folder)
    base = {n: v.float() for n, v in load_file(folder / "base.safetensors").items()}
    names = [task["name"] for task in manifest["tasks"]]
    models = [load_file(folder / "models" / f"{name}.safetensors") for name in names]
    merged = {n: v + 0.3 * sum(model[n].float() - v for model in models) for n, v in base.items()}
    empty = train.make_tower(manifest["architecture"]["kwargs"])
    gaps = []
    for task, model in zip(manifest["tasks"], models, strict=True):
        head = load_file(folder / "heads" / f"{task['name']}.safetensors")["weight"].float()
        with np.load(folder / "data" / f"{task['name']}.npz") as data:
            x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])
        found = [
            train.accuracy(train.with_weights(empty, state), head, x, y)
            for state in (base, merged, model)
        ]
        assert found[0] == pytest.approx(task["accuracy_full_test"]["pretrained"], abs=0.01)
        assert found[2] == pytest.approx(task["accuracy_full_test"]["finetuned"], abs=0.01)
        gaps.append(found[2] - found[1])
    assert sum(gaps) / len(gaps) >= 0.15
