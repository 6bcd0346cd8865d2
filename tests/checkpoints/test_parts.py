# SPDX-License-Identifier: Apache-2.0
"""Of a file that holds several models, the one that is meant; wrappers' names are no model's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from mdft_fast.checkpoints import Choice, convert, open_state
from mdft_fast.errors import MdftError
from tests.checkpoints.corpus import same


def state(value: float) -> dict[str, Tensor]:
    return {"stem.weight": torch.full((2, 3), value), "stem.bias": torch.full((2,), value)}


RAW, EMA = state(1.0), state(2.0)


def opened(value: Any, tmp_path: Path, **choice: Any) -> Any:
    torch.save(value, tmp_path / "a.pt")
    return open_state(tmp_path / "a.pt", choice=Choice(**choice))


@pytest.mark.parametrize(
    ("raw", "ema", "library"),
    [
        ("state_dict", "state_dict_ema", "timm"),
        ("model", "model_ema", "timm"),
        ("params", "params_ema", "BasicSR"),
        ("student", "teacher", "DINO"),
    ],
)
def test_an_average_is_taken_where_its_library_takes_it(
    raw: str, ema: str, library: str, tmp_path: Path
) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in EMA.items()}
    value = {"epoch": 1, raw: RAW, ema: {**wrapped, "n_averaged": torch.tensor(3)}}
    plain = opened(value, tmp_path)
    assert same(plain.tensors, EMA)
    assert re.search(rf"a.pt: '{ema}' is taken, as {library} does, not '{raw}'", plain.notes[0])
    assert same(opened(value, tmp_path, weights="ema").tensors, EMA)
    for choice in ({"weights": "raw"}, {"part": raw}):
        chosen = opened(value, tmp_path, **choice)
        assert same(chosen.tensors, RAW)
        assert not chosen.notes


@pytest.mark.parametrize("ema", ["ema", "ema_state_dict", "swa_model", "best_model", "shadow"])
def test_versions_that_no_library_chooses_must_be_named(ema: str, tmp_path: Path) -> None:
    value = {"model": RAW, ema: EMA}
    with pytest.raises(MdftError, match=rf"several versions of one model, \['model', '{ema}'\]"):
        opened(value, tmp_path)
    assert same(opened(value, tmp_path, part=ema).tensors, EMA)
    if ema != "best_model":
        assert same(opened(value, tmp_path, weights="raw").tensors, RAW)
        assert same(opened(value, tmp_path, weights="ema").tensors, EMA)


def test_what_is_no_version_of_the_model_is_left_out(tmp_path: Path) -> None:
    other = {"model": RAW, "ema": {"loss": torch.ones(1)}, "params": {"lr": torch.ones(1)}}
    assert same(opened(other, tmp_path).tensors, RAW)
    module = nn.ModuleDict({"stem": nn.Linear(3, 2)})
    both = {"model": module, "model_state_dict": module.state_dict()}  # one model, saved twice
    assert same(opened(both, tmp_path).tensors, module.state_dict())


def test_a_single_state_dict_is_found_under_any_key(tmp_path: Path) -> None:
    assert same(opened({"encoder": RAW, "epoch": 3}, tmp_path).tensors, RAW)
    two = {"generator": RAW, "discriminator": EMA}
    with pytest.raises(MdftError, match=r"must hold one model, got \['generator', 'discriminator'"):
        opened(two, tmp_path)
    assert same(opened(two, tmp_path, part="discriminator").tensors, EMA)


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_part_is_what_names_begin_with(form: str, tmp_path: Path) -> None:
    names = {f"model.{n}": t for n, t in RAW.items()} | {f"ema.module.{n}": EMA[n] for n in EMA}
    if form == "torch":
        torch.save({"state_dict": names, "epoch": 1}, tmp_path / "a")
    else:
        save_file(names, tmp_path / "a")
    for part, wanted in (("model", RAW), ("ema.module", EMA), ("ema", EMA)):
        state = open_state(tmp_path / "a", choice=Choice(part=part))
        assert same(state.tensors, wanted)
        assert any("stands beside" in why for why in state.left_out.values())
    with pytest.raises(MdftError, match=r"one of \['ema', 'model'\], got 'modle'; did you"):
        open_state(tmp_path / "a", choice=Choice(part="modle"))
    if form == "torch":
        both = open_state(tmp_path / "a", choice=Choice(part="state_dict.model"))
        assert same(both.tensors, RAW)
    convert(tmp_path / "a", tmp_path / "b.safetensors", choice=Choice(part="ema"))
    assert same(open_state(tmp_path / "b.safetensors").tensors, EMA)


LISTED = {"decay": 0.9, "shadow_params": list(EMA.values())}  # torch_ema's
BOTH = {f"online_model.{n}": t for n, t in RAW.items()}  # ema_pytorch's
BOTH |= {f"ema_model.{n}": t for n, t in EMA.items()}
FLAT = {f"model_ema.{n.replace('.', '')}": t for n, t in EMA.items()}  # LitEma's


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"model": RAW, "ema": LISTED}, "ema"),
        ({"model": RAW, "ema": BOTH}, "ema"),
        (
            {"state_dict": RAW, "callbacks": {"X": {"ema_state_dict": EMA}}},
            "callbacks.X.ema_state_",
        ),
        ({"state_dict": RAW, "optimizer_states": [{"ema": tuple(EMA.values())}]}, "optimizer_s"),
        ({"state_dict": {**RAW, **FLAT}}, "model_ema"),
    ],
)
def test_an_average_that_is_not_understood_is_refused_or_said(
    value: Any, where: str, tmp_path: Path
) -> None:
    with pytest.raises(MdftError, match=rf"as weights: ema wants it, got '{where}.*not understood"):
        opened(value, tmp_path, weights="ema")
    plain = opened(value, tmp_path)
    assert re.search(rf"a.pt: '{where}.* is named like an average", *plain.notes)
    assert same({name: plain.tensors[name] for name in RAW}, RAW)
    assert not opened(value, tmp_path, weights="raw").notes


def test_raw_weights_are_never_an_average(tmp_path: Path) -> None:
    averaged = AveragedModel(nn.Linear(3, 2)).state_dict()
    named = {f"ema.{n}": t for n, t in EMA.items()}
    for value in ({"ema": EMA}, {"model": None, "ema": EMA}, {"model": averaged}, named):
        with pytest.raises(MdftError, match=r"must hold raw weights.* got an average alone"):
            opened(value, tmp_path, weights="raw")
        assert same(opened(value, tmp_path, weights="ema").tensors, opened(value, tmp_path).tensors)


def test_lightnings_averaged_state_dict_stands_beside_raw_weights(tmp_path: Path) -> None:
    value = {"state_dict": EMA, "current_model_state": RAW, "averaging_state": {"n": 1}}
    assert same(opened(value, tmp_path, weights="raw").tensors, RAW)
    assert same(opened(value, tmp_path, weights="ema").tensors, EMA)
    plain = opened(value, tmp_path)
    assert same(plain.tensors, EMA)
    assert re.search(r"'state_dict' is taken, as Lightning does", *plain.notes)


def test_a_file_without_a_word_of_an_average_has_one_model(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": RAW["stem.weight"], "exp_avg_sq": RAW["stem.bias"]}}}
    value = {"model": RAW, "optimizer": optimizer, "ema": None, "ema_decay": 0.9}
    for weights in (None, "ema", "raw"):
        state = opened(value, tmp_path, weights=weights)
        assert same(state.tensors, RAW)
        assert not state.notes


def test_a_wrong_choice_is_named(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"weights: must be 'ema' or 'raw', got 'EMA'"):
        Choice(weights="EMA")


def test_wrappers_anywhere_in_a_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    wanted = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net[1][0] = torch.compile(net[1][0])  # type: ignore[index,operator]
    net[1] = checkpoint_wrapper(net[1])
    inside = {  # checkpoint_wrapper takes its own name out again; FSDP of old does not
        name.replace("1.", "1._checkpoint_wrapped_module."): tensor
        for name, tensor in net.state_dict().items()
    }
    assert any("_orig_mod" in name for name in inside)
    averaged = AveragedModel(torch.compile(net)).state_dict()  # type: ignore[arg-type]
    for value in (inside, averaged, {"model": {f"module.{n}": t for n, t in inside.items()}}):
        assert same(opened(value, tmp_path).tensors, wanted)
    save_file(dict(inside), tmp_path / "a.safetensors")
    assert same(open_state(tmp_path / "a.safetensors").tensors, wanted)


def test_names_that_would_become_one_stay(tmp_path: Path) -> None:
    value = {"a._orig_mod.w": torch.ones(1), "a.w": torch.zeros(1)}
    assert set(opened(value, tmp_path).tensors) == set(value)


def test_two_files_of_one_folder_are_said(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "model.safetensors")
    torch.save(EMA, tmp_path / "pytorch_model.bin")
    state = open_state(tmp_path)
    assert same(state.tensors, RAW)
    assert state.notes[0].endswith(
        "model.safetensors is taken, as transformers does, not pytorch_model.bin beside it"
    )
