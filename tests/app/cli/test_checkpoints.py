# SPDX-License-Identifier: Apache-2.0
"""``mdft inspect`` and ``mdft convert``, and where a recipe finds its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mdft_fast.app.recipe.discovery import find_models
from mdft_fast.checkpoints import find_checkpoint, find_tasks, open_state, read_json
from mdft_fast.data import npz_keys
from mdft_fast.errors import MdftError
from mdft_fast.heads import file_digest
from mdft_fast.pool import Head
from tests.app.conftest import call
from tests.checkpoints.corpus import MEAN, same, save_encoder, save_head, tiny_clip


def test_inspect_tells_what_a_file_is(tmp_path: Path) -> None:
    state = {"module.a.x": torch.ones(2, 3), "module.a.y": torch.ones(4).half()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pt")
    shown = call("inspect", tmp_path / "a.pt", "--all")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["tensors", "2,", "10", "elements,", "0.0", "MB"] in lines
    assert ["dtypes", "float16", "(1),", "float32", "(1)"] in lines
    assert ["names", "all", "begin", "with", "'a.'"] in lines
    assert ["epoch:", "stands", "beside", "'model'"] in lines
    assert ["a.x", "[2,", "3]", "float32"] in lines


def test_a_pickled_encoder_is_converted_with_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    model = tiny_clip()
    save_encoder(tmp_path / "finetuned.pt", model)
    shown = call("inspect", tmp_path / "finetuned.pt")
    assert "says      activation: quick_gelu" in shown.stdout
    assert "says      resize: shortest" in shown.stdout
    target = tmp_path / "mnist.safetensors"
    shown = call("convert", tmp_path / "finetuned.pt", target)
    assert "left out: model.logit_scale: CLIP's text tower" in shown.stdout
    written = open_state(target)
    assert same(written.tensors, model.visual.state_dict())
    assert written.facts == open_state(tmp_path / "finetuned.pt").facts
    assert written.facts.mean == pytest.approx(MEAN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["finetuned.pt", "mnist.safetensors"]


def test_a_head_is_converted_with_normalize(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    save_head(tmp_path / "head_MNIST.pt", weight)
    call("convert", tmp_path / "head_MNIST.pt", tmp_path / "mnist.safetensors")
    head = Head.from_file(tmp_path / "mnist.safetensors")
    assert head.normalize is True
    assert torch.equal(head.weight, weight)


def test_an_old_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"mine")
    shown = call("convert", tmp_path / "a.pt", target, code=1)
    assert target.read_bytes() == b"mine"
    assert "must not exist, got a file; --overwrite replaces it" in shown.stderr
    call("convert", tmp_path / "a.pt", target, "--overwrite")
    assert open_state(target).tensors["a"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "a.pt", "a.bin"], "a.bin: the new file must end in .safetensors"),
        (["convert", "none.pt", "b.safetensors"], "none.pt: no such file"),
        (["inspect", "junk.pt"], "junk.pt: not a checkpoint that is read here (4 bytes, unknown)"),
        (["inspect", "."], ".: must be a checkpoint's folder, with one of"),
    ],
)
def test_errors_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1)}, "a.pt")
    Path("junk.pt").write_bytes(b"junk")
    shown = call(*arguments, code=1)
    assert message in shown.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "junk.pt"]


@pytest.mark.parametrize(
    ("made", "task"),
    [
        ("mnist.safetensors", "mnist"), ("mnist.pt", "mnist"), ("mnist/finetuned.pt", "mnist"),
        ("MNIST/finetuned.pt", "mnist"), ("SUN397/finetuned.pt", "sun397"),
        ("mnist/model.safetensors", "mnist"), ("mnist.pth", "mnist"),
        ("mnist.bin", "mnist"), ("mnist/adapter_config.json", "mnist"), ("mnist.ckpt", "mnist"),
        ("mnist.pth.tar", "mnist"), ("MNIST.PT", "mnist"),
    ],
)  # fmt: skip
def test_a_tasks_checkpoint_is_found(made: str, task: str, tmp_path: Path) -> None:
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).touch()
    in_folder = made.endswith(("model.safetensors", ".json"))
    found = find_checkpoint(tmp_path, task)
    assert found == ((tmp_path / made).parent if in_folder else tmp_path / made)
    (tmp_path / "head_MNIST.pt").touch()
    (tmp_path / "data" / task).mkdir(parents=True)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").touch()
    stem = "MNIST" if made == "MNIST.PT" else task
    assert find_tasks(tmp_path, tmp_path / "base") == [stem]


@pytest.mark.parametrize(
    "files",
    [
        ("mnist.safetensors", "mnist.pt"),
        ("mnist.ckpt", "mnist/finetuned.pt"),
        ("mnist/last.ckpt", "mnist/best.ckpt"),
        ("MNIST.pt", "Mnist.pt"),
    ],
)
def test_two_checkpoints_of_one_task_are_refused(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(MdftError, match=r"task 'mnist' must be one, got \[") as caught:
        find_checkpoint(tmp_path, "mnist")
    assert all(repr(name) in str(caught.value) for name in files)


def test_the_tasks_own_capitals_go_first(tmp_path: Path) -> None:
    for name in ("MNIST.pt", "mnist.pt"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path, "mnist") == tmp_path / "mnist.pt"


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        (tmp_path / "mnist" / name).touch()
    with pytest.raises(MdftError, match=r"a file 'mnist' .*'.pth.tar'.*mnist/finetuned.pt"):
        find_checkpoint(tmp_path, "mnist")


def test_what_lies_deeper_is_named(tmp_path: Path) -> None:
    place = tmp_path / "models" / "alpha" / "run1" / "checkpoint-5"
    place.mkdir(parents=True)
    (place / "adapter_config.json").touch()
    (tmp_path / "base.pt").touch()
    deeper = r"got what lies deeper, \['alpha/run1/checkpoint-5'\]; put the one"
    with pytest.raises(MdftError, match=rf"task 'alpha'.* {deeper}"):
        find_checkpoint(tmp_path / "models", "alpha")
    with pytest.raises(MdftError, match=rf"must hold the fine-tuned models .* {deeper}"):
        find_models(tmp_path)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mnist.pt")
    os.mkfifo(tmp_path / "base")
    (tmp_path / "cars").mkdir()
    os.mkfifo(tmp_path / "cars" / "finetuned.pt")
    assert find_tasks(tmp_path, tmp_path / "base") == ["cars", "mnist"]
    assert find_checkpoint(tmp_path, "cars") == tmp_path / "cars" / "finetuned.pt"
    assert find_checkpoint(tmp_path, "mnist") == tmp_path / "mnist.pt"
    for path in (tmp_path / "mnist.pt", tmp_path / "base"):
        with pytest.raises(MdftError, match="must be a regular file, got a named pipe"):
            open_state(path)
    for read in (file_digest, npz_keys, read_json):
        with pytest.raises(MdftError, match="must be a regular file, got a named pipe"):
            read(tmp_path / "mnist.pt")


def test_convert_takes_a_part_in_a_dtype(tmp_path: Path) -> None:
    names = {"model.w": torch.ones(2), "ema.w": torch.full((2,), 2.0), "ema.head": torch.ones(1)}
    torch.save({"state_dict": names}, tmp_path / "a.ckpt")
    target = tmp_path / "a.safetensors"
    shown = call("inspect", tmp_path / "a.ckpt", "--part", "ema")
    assert "  model.w: stands beside part 'ema'" in shown.stdout
    options = ("--part", "ema", "--dtype", "float16", "--ignore", "hea*")
    shown = call("convert", tmp_path / "a.ckpt", target, *options)
    assert "left out: head: ignored by pattern 'hea*'" in shown.stdout
    written = open_state(target).tensors
    assert {name: tensor.tolist() for name, tensor in written.items()} == {"w": [2.0, 2.0]}
    assert written["w"].dtype == torch.float16


def test_convert_says_which_weights_it_took(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "model_ema": {"w": torch.zeros(1)}}, tmp_path / "a")
    shown = call("convert", tmp_path / "a", tmp_path / "a.safetensors")
    assert "note: " in shown.stdout
    assert "'model_ema' is taken, as timm does, not 'model'" in shown.stdout
    call("convert", tmp_path / "a", tmp_path / "b.safetensors", "--weights", "raw")
    assert open_state(tmp_path / "b.safetensors").tensors["w"].tolist() == [1.0]
    shown = call("convert", tmp_path / "a", tmp_path / "c.safetensors", "--weights", "x", code=1)
    assert "weights: must be 'ema' or 'raw', got 'x'" in shown.stderr


def test_inspect_of_a_safetensors_head(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "h.safetensors")
    assert "no common prefix" in call("inspect", tmp_path / "h.safetensors").stdout
