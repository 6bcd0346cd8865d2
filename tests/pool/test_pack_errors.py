# SPDX-License-Identifier: Apache-2.0
"""Every refusal names file and key, what was wanted and what came, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head
from tests.pool.conftest import tiny_parts


def _change(which: str, key: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Bends one tensor of one checkpoint file; ``change`` returning None removes it."""

    def bend(files: Any) -> None:
        path = files.base if which == "base" else files.models[which]
        state = {name: t.clone() for name, t in load_file(path).items()}
        new = change(state.pop(key, None))
        if new is not None:
            state[key] = new
        path.unlink()
        save_file(state, path)

    return bend


def _put(value: float, count: int) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        tensor.view(-1)[:count] = value
        return tensor

    return change


def _task(index: int, **changes: Any) -> Callable[[Any], None]:
    def bend(files: Any) -> None:
        for key, value in changes.items():
            setattr(files.tasks[index], key, value)

    return bend


def _option(key: str, value: Any) -> Callable[[Any], None]:
    return lambda files: files.options.__setitem__(key, value)


CASES = {
    "missing": (_change("task1", "out.bias", lambda t: None),
        r"task1.safetensors: tensor 'out.bias' of the backbone is missing"),
    "misspelt": (lambda f: (
            _change("base", "norm.weight", lambda t: None)(f),
            _change("base", "norm.wieght", lambda t: torch.ones(5).half())(f),
        ), r"base.safetensors: tensor 'norm.weight' .*missing; did you mean 'norm.wieght'\?"),
    "extra": (_change("task0", "head.weight", lambda t: torch.ones(2)),
        r"task0.safetensors: extra key 'head.weight' is not in the backbone.*ignore="),
    "shape": (_change("task2", "out.bias", lambda t: t[:3].clone()),
        r"task2.safetensors: tensor 'out.bias' must be \[4\] as in the backbone, got \[3\]"),
    "mixed dtypes": (_change("task1", "out.weight", lambda t: t.bfloat16()),
        r"task1.safetensors: mixed dtypes: tensor 'out.weight' must be in torch.float16 as in "
        r".*base.safetensors, or wider, got torch.bfloat16"),
    "integer where a parameter is": (_change("base", "out.bias", lambda t: t.int()),
        r"base.safetensors: tensor 'out.bias' must be in one of .*got torch.int32"),
    "NaN": (_change("task1", "wide.weight", _put(float("nan"), 3)),
        r"task1.safetensors: tensor 'wide.weight' must be finite, got 3 of 1505 elements"),
    "infinity": (_change("task0", "gain", _put(float("-inf"), 1)),
        r"task0.safetensors: tensor 'gain' must be finite, got 1 of 1 elements"),
    "NaN in the base": (_change("base", "embed.bias", _put(float("nan"), 2)),
        r"base.safetensors: tensor 'embed.bias' must be finite, got 2 of 5 elements"),
    "NaN in a buffer": (
        lambda f: [_change(w, "shift", _put(float("nan"), 1))(f) for w in ("base", *f.models)],
        r"base.safetensors: tensor 'shift' must be finite, got 1 of 4 elements NaN or infinite$"),
    "equals the base": (lambda f: f.models["task1"].write_bytes(f.base.read_bytes()),
        r"task1.safetensors: is equal to .*base.safetensors.*all zero"),
    "identical": (lambda f: f.models["task2"].write_bytes(f.models["task0"].read_bytes()),
        r"task2.safetensors: the model of task 'task2' is identical to .*task0.safetensors"),
    "buffer": (_change("task1", "shift", _put(1.0, 1)),
        r"task1.safetensors: tensor 'shift' \(buffer\) must equal .*base.safetensors's"),
    "integer buffer": (_change("task1", "index", _put(9, 1)),
        r"task1.safetensors: tensor 'index' \(buffer \(torch.int64\)\) must equal"),
    "frozen": (_change("task2", "frozen", _put(2.0, 4)),
        r"task2.safetensors: tensor 'frozen' \(frozen by the user .*must equal"),
    "tied": (_change("task0", "again.weight", _put(2.0, 1)),
        r"task0.safetensors: 'again.weight' must equal 'embed.weight'.*got different"),
    "no tasks": (lambda f: f.tasks.clear(), r"tasks must name at least one task, got none"),
    "same names": (_task(1, name="Task0"), r"names must differ, got 'Task0' twice in \['task0'"),
    "path as a name": (_task(1, name="../x"), r"task '../x': a name must be letters"),
    "classes": (_task(1, class_names=("a", "b")),
        r"task 'task1': head must have one row for each of 2 class names, got weight \[3, 4\]"),
    "features of one head": (_task(1, head=Head(torch.ones(3, 5))),
        r"task 'task1': head must read 4 features as that of task 'task0', got weight \[3, 5\]"),
    "features of all heads": (
        lambda f: [setattr(t, "head", Head(torch.ones(len(t.class_names), 7))) for t in f.tasks],
        r"task 'task0': head must read the backbone's 4 features, got weight \[2, 7\]"),
    "head not finite": (_task(0, head=Head(torch.full((2, 4), float("nan")))),
        r"task 'task0': head 'weight' must be finite, got 8 of 8"),
    "unknown checkpoint": (lambda f: f.models.update(taks1=f.models.pop("task1")),
        r"unknown task 'taks1'; did you mean 'task1'\?"),
    "checkpoint missing": (lambda f: f.models.pop("task1"),
        r"checkpoint of task 'task1' is missing, got \['task0', 'task2'\]"),
    "short list": (lambda f: setattr(f, "models", list(f.models.values())[:2]),
        r"one for each of 3 tasks .*got 2"),
    "nothing to merge": (_option("backbone", nn.Linear(3, 4).requires_grad_(False)),
        r"no floating-point parameter requires grad"),
    "buffers": (_option("buffers", "mean"), r"buffers must be 'same' or 'base', got 'mean'"),
    "codec": (_option("codec", "bf61"), r"codec: must be one of .*got 'bf61'; did you mean 'bf16'"),
    "spec": (_option("backbone_spec", {"f": print}), r"backbone_spec: must be plain JSON, got"),
    "spec with a tuple": (_option("backbone_spec", {"size": (1, 2)}),
        r"backbone_spec: must survive JSON unchanged, got"),
    "preprocess key": (_option("preprocess", {"size": 2, "mean": 0, "sdt": 1}),
        r"preprocess: keys must be .*got 'sdt'; did you mean 'std'\?"),
    "preprocess missing": (_option("preprocess", {"size": 2, "mean": 0}), r"'std' is missing"),
    "preprocess std": (_option("preprocess", {"size": 2, "mean": 0, "std": 0}),
        r"'std' must be above 0, got 0"),
    "preprocess size": (_option("preprocess", {"size": [2, 2.5], "mean": 0, "std": 1}),
        r"'size' must be whole pixels above 0, got \[2, 2.5\]"),
    "preprocess mean": (_option("preprocess", {"size": 2, "mean": [0, 1], "std": 1}),
        r"'mean' must be one number or 3, got \[0, 1\]"),
    "preprocess form": (_option("preprocess", 64), r"preprocess: must be a mapping .*got 64"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_errors_say_what_was_wanted_and_what_came(case: str, files: Any, tmp_path: Path) -> None:
    bend, message = CASES[case]
    bend(files)
    with pytest.raises(MdftError, match=message) as caught:
        files.build()
    assert "\n" not in str(caught.value)
    with pytest.raises(MdftError, match=message):
        files.pack(tmp_path / "out" / "pool")
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())  # nothing half-written


def test_a_value_beyond_fp16_is_refused_by_name(parts: Any, tmp_path: Path) -> None:
    parts.models[1]["out.bias"] = torch.full((4,), 6e4).half()
    parts.base["out.bias"] = torch.full((4,), -6e4).half()
    message = r"task 'task1'.*'out.bias' has a task-vector element of 120000.*65504.*'fp16'"
    with pytest.raises(MdftError, match=message):
        parts.build().encode("fp16")
    parts.options["codec"] = "fp16"
    with pytest.raises(MdftError, match=message):
        parts.pack(tmp_path / "pool")
    assert not list(tmp_path.iterdir())


def test_a_difference_beyond_float32_is_refused() -> None:
    parts = tiny_parts(dtype=torch.float32)
    parts.models[1]["out.bias"] = torch.full((4,), 3e38)
    parts.base["out.bias"] = torch.full((4,), -3e38)
    with pytest.raises(MdftError, match=r"task 'task1'.*beyond float32's range"):
        parts.build()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_element_is_found_in_whatever_piece_it_lies(
    bad: float, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdft_fast.pool.packing.PIECE", 1024)
    assert parts.build().K == 3
    parts.models[0]["embed.weight"][3, 3] = bad
    parts.models[0]["again.weight"] = parts.models[0]["embed.weight"]
    with pytest.raises(
        MdftError, match=r"task 'task0'.*'embed.weight' must be finite, got 1 of 60"
    ):
        parts.build()


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_a_truncated_file_is_named(files: Any, keep: int) -> None:
    path = files.models["task1"]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MdftError, match=rf"task1.safetensors: not a readable.*\({keep} bytes"):
        files.build()


def test_other_formats_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"never unpickled")
    with pytest.raises(MdftError, match=r"model.pt: not a checkpoint that is read here \(15 bytes"):
        open_state(path)
    with pytest.raises(MdftError, match=r"none.safetensors: no such file"):
        open_state(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"state_dict": {}}, r"base \(state dict\): 'state_dict' must be a Tensor, got dict"),
        (7, r"base: must be a path, a state dict or a module, got int"),
        ({"embed.weight": torch.empty(2, device="meta")},
         r"base \(state dict\): 'embed.weight' must be a dense tensor with data"),
    ],
)  # fmt: skip
def test_a_source_must_hold_tensors(parts: Any, source: Any, message: str) -> None:
    parts.base = source
    with pytest.raises(MdftError, match=message):
        parts.build()
