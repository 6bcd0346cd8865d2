# SPDX-License-Identifier: Apache-2.0
"""What torch.save writes, in both formats, is read as torch.load reads it."""

from __future__ import annotations

import collections
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
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
            r"got 'a', which must be a dense tensor with data and is a sparse one",
        ),
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
        (b"\x80\x02}q\x00.", "torch.save did not write but pickle.dump.* of a dict"),
    ],
)
def test_other_files_are_refused_unread(content: bytes, seems: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.pt").write_bytes(content)
    with pytest.raises(MdftError, match=rf"model.safetensors.pt: .*({seems})"):
        open_state(tmp_path / "model.safetensors.pt")


def test_a_git_lfs_pointer_under_the_usual_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(MdftError, match=r"a git-lfs pointer; the file itself was not"):
            open_state(path)


def test_plain_pickles_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.zeros((3, 4), np.float32)}))
    with pytest.raises(MdftError, match=r"torch.save did not write but pickle.dump; .*of a dict"):
        open_state(tmp_path / "a.pkl")
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(MdftError, match=r"torch.distributed.checkpoint.*dcp_to_torch_save"):
        open_state(tmp_path)


@FORMATS
def test_objects_beside_the_weights_do_not_spoil_them(legacy: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    beside: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "moments": {module[0].weight: torch.zeros(4, 3), "generator": torch.Generator()},
        "float8": torch.zeros(3).to(torch.float8_e4m3fn),
        "uint16": torch.zeros(3, dtype=torch.uint16),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "numpy": np.float64(0.5),
    }
    del beside["moments"]["generator"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save({"model": module.state_dict(), **beside}, tmp_path / "a.pt", legacy)
    opened = open_state(path)
    assert same(opened.tensors, module.state_dict())
    assert set(opened.left_out) == set(beside)


@FORMATS
def test_lazy_views_are_what_torch_reads(legacy: bool, tmp_path: Path) -> None:
    value = {
        "negative": torch._neg_view(torch.randn(3)),
        "imaginary": torch.randn(3, dtype=torch.complex64).conj().imag,
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }
    path = save(value, tmp_path / "a.pt", legacy)
    wanted = torch.load(path)
    for name, tensor in open_state(path).tensors.items():
        assert torch.equal(tensor, wanted[name].resolve_conj().resolve_neg())


def test_a_tensor_that_cannot_be_read_is_named_where_it_is_needed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "mask": torch.eye(2).to_sparse()}, tmp_path / "a.pt")
    opened = open_state(tmp_path / "a.pt")
    assert list(opened.tensors) == ["a"]
    assert opened.unreadable == {"mask": "a sparse one"}
    with pytest.raises(MdftError, match=r"a.pt: tensor 'mask' .* got a sparse one; ignore leaves"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    convert(tmp_path / "a.pt", tmp_path / "b.safetensors", ignore=["ma*"])
    assert list(open_state(tmp_path / "b.safetensors").tensors) == ["a"]


@pytest.mark.parametrize("file", ["a.pt", "a.safetensors"])
def test_a_converted_file_may_have_another_dtype(file: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"w": torch.randn(3), "n": torch.tensor(3), "freqs": torch.ones(2).to(torch.complex64)}
    torch.save(state, tmp_path / file) if file == "a.pt" else save_file(state, tmp_path / file)
    convert(tmp_path / file, tmp_path / "b.safetensors", dtype="float16")
    written = open_state(tmp_path / "b.safetensors").tensors
    assert torch.equal(written["w"], state["w"].half())
    assert torch.equal(written["n"], state["n"])
    assert torch.equal(written["freqs"], state["freqs"])
    with pytest.raises(MdftError, match=r"dtype: must be one of .*got 'fp16'"):
        convert(tmp_path / file, tmp_path / "c.safetensors", dtype="fp16")
    torch.save({"w": torch.tensor([1e6])}, tmp_path / "large.pt")
    with pytest.raises(MdftError, match=r"large.pt: tensor 'w' has elements beyond float16's"):
        convert(tmp_path / "large.pt", tmp_path / "c.safetensors", dtype="float16")
    torch.save({"w": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "wide.pt")
    with pytest.raises(MdftError, match=r"wide.pt: tensor 'w' must be in one of .*complex128"):
        convert(tmp_path / "wide.pt", tmp_path / "c.safetensors")
    assert sorted(path.name for path in tmp_path.glob("*c.safe*")) == []


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert open_state(tmp_path / "a.pt").format == "safetensors"
    assert open_state(tmp_path / "a.safetensors").format == "torch"
