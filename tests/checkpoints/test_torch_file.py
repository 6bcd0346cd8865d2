# SPDX-License-Identifier: Apache-2.0
"""What torch.save writes, in both formats, is read as torch.load reads it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdft_fast.checkpoints import convert, open_state
from mdft_fast.errors import MdftError
from tests.checkpoints.corpus import same

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(value: Any, path: Path, legacy: bool, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, **options)
    return path


def tensors() -> dict[str, torch.Tensor]:
    wide = torch.arange(24.0).view(4, 6)
    return {
        "wide": wide,
        "transposed": wide.T,
        "middle": wide[1:3, 2:4],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).half(),
        "bf16": torch.randn(5).bfloat16(),
        "double": torch.randn(2).double(),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.randn(3)),
    }


@FORMATS
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_state_dict(protocol: int, legacy: bool, tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "any.name", legacy, pickle_protocol=protocol)
    state = open_state(path)
    assert same(state.tensors, torch.load(path, weights_only=False))
    assert state.tensors["middle"].stride() == (6, 1)
    assert state.format == ("torch, legacy" if legacy else "torch")
    assert not state.left_out


@FORMATS
def test_tied_tensors_share_their_file(legacy: bool, tmp_path: Path) -> None:
    path = save({"a": (t := torch.randn(6)), "b": t.view(2, 3)}, tmp_path / "a.pt", legacy)
    state = open_state(path).tensors
    assert torch.equal(state["a"].view(2, 3), state["b"])


@FORMATS
def test_what_is_changed_stays_out_of_the_file(legacy: bool, tmp_path: Path) -> None:
    path = save({"a": torch.randn(300)}, tmp_path / "a.pt", legacy)
    before = path.read_bytes()
    open_state(path).tensors["a"].zero_()
    assert path.read_bytes() == before


@FORMATS
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_wrappers_are_taken_off(wrapper: str, legacy: bool, tmp_path: Path) -> None:
    state = {"stem.weight": torch.randn(2, 3), "stem.bias": torch.randn(2)}
    inner = collections.OrderedDict(("module._orig_mod." + k, v) for k, v in state.items())
    optimizer = {"state": {0: {"step": 1, "avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    whole = {wrapper: inner, "optimizer": optimizer, "epoch": 7, "args": {"lr": 0.1}}
    opened = open_state(save(whole, tmp_path / "a.pt", legacy))
    assert same(opened.tensors, state)
    assert set(opened.left_out) == {"optimizer", "epoch", "args"}
    assert opened.left_out["epoch"] == f"stands beside {wrapper!r}"


@FORMATS
@pytest.mark.parametrize("twice", [False, True])
def test_a_tensor_beside_the_wrapper_is_left_out(twice: bool, legacy: bool, tmp_path: Path) -> None:
    inner: dict[str, Any] = {"w": torch.ones(2)}
    inner = {"state_dict": inner} if twice else inner
    whole = {"step": torch.tensor(1), "state_dict": {}, "model": inner, "params": {"lr": 1}}
    path = save(whole, tmp_path / "a.pt", legacy)
    opened = open_state(path)
    assert same(opened.tensors, {"w": torch.ones(2)})
    assert opened.left_out == dict.fromkeys(
        ["step", "state_dict", "params"], "stands beside 'model'"
    )
    convert(path, tmp_path / "a.safetensors")
    assert list(open_state(tmp_path / "a.safetensors").tensors) == ["w"]
    plain = {"model": {"lr": 1}, "w": torch.ones(2)}  # no wrapper: it holds no tensors
    assert list(open_state(save(plain, path, legacy)).tensors) == ["w"]


@FORMATS
def test_what_is_no_tensor_is_left_out_by_name(legacy: bool, tmp_path: Path) -> None:
    path = save({"a": torch.ones(1), "note": "hello", 3: None}, tmp_path / "a.pt", legacy)
    opened = open_state(path)
    assert list(opened.tensors) == ["a"]
    assert opened.left_out == {"note": "not a tensor (str)", "3": "not a tensor (NoneType)"}


@FORMATS
def test_a_whole_module(legacy: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU())
    module.register_buffer("unsaved", torch.ones(1), persistent=False)
    opened = open_state(save(module, tmp_path / "a.pt", legacy))
    assert same(opened.tensors, module.state_dict())
    assert opened.left_out == {"unsaved": "buffer that its module does not save"}
    assert opened.facts.activation == "gelu"
    assert opened.format.endswith("pickled torch.nn.modules.container.Sequential")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    torch.jit.script(module).save(str(tmp_path / "a.pt"))
    assert same(open_state(tmp_path / "a.pt").tensors, module.state_dict())


@FORMATS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], r"must hold a state dict or a module, got a list"),
        ({"epoch": 3}, r"must hold tensors by name, got a dict without any"),
        (
            {"a": torch.ones(2).to_sparse()},
            r"'a' must be a dense tensor with data, got one of torch._utils._rebuild_sparse",
        ),
        ({"a": torch.ones(2, dtype=torch.complex64)}, r"a storage must be one of .*got torch.Comp"),
        (torch.device("cpu"), r"must hold a state dict or a module, got a pickled torch.device"),
    ],
)
def test_other_contents_are_named(value: Any, message: str, legacy: bool, tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"a.pt: .*" + message):
        open_state(save(value, tmp_path / "a.pt", legacy))


@FORMATS
@pytest.mark.parametrize("keep", [0, 1, 30, 200, 0.5, -1])
def test_truncated_files_are_named(keep: float, legacy: bool, tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "a.pt", legacy)
    content = path.read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep
    path.write_bytes(content[:length])
    with pytest.raises(MdftError, match=r"a.pt: not a (readable torch file|checkpoint)"):
        open_state(path)


@pytest.mark.parametrize(
    ("content", "seems"),
    [
        (b"", "0 bytes, unknown"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"never unpickled", "unknown"),
        (b"PK\x03\x04 and no more", "damaged zip file"),
        (b"{}", "must have 'weight_map'"),
        (b"\x80\x02}q\x00.", "a pickle that torch.save did not write|damaged pickle"),
    ],
)
def test_other_files_are_refused_unread(content: bytes, seems: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.pt").write_bytes(content)
    with pytest.raises(MdftError, match=rf"model.safetensors.pt: .*({seems})"):
        open_state(tmp_path / "model.safetensors.pt")


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert open_state(tmp_path / "a.pt").format == "safetensors"
    assert open_state(tmp_path / "a.safetensors").format == "torch"
