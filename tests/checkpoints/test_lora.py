# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters are read as peft merges them, and what is no B·A is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mdft_fast.checkpoints import SourceFacts, State, compare_bases, convert, open_state
from mdft_fast.errors import MdftError

peft = pytest.importorskip("peft")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
pytestmark = pytest.mark.filterwarnings("ignore")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.position = nn.Embedding(5, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(8, 8), "fc": nn.Linear(8, 6)}) for _ in range(2)
        )
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x


def adapter(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """Saves a random adapter, its base beside it; returns the base's and the merged states."""
    torch.manual_seed(0)
    base = Small().to(dtype)
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 3, "init_lora_weights": False, **options})
    model = peft.get_peft_model(copy.deepcopy(base), config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_()
    model.save_pretrained(folder)
    save_file(base.state_dict(), folder.parent / "base.safetensors")
    return base.state_dict(), model.merge_and_unload().state_dict()


def on_base(folder: Path, base: str = "base") -> State:
    """Opens the adapter of a folder, over a base beside it."""
    return open_state(folder / "adapter", base=open_state(folder / f"{base}.safetensors"))


CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "fc"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "fc"],
        "rank_pattern": {"blocks.0.fc": 3, "q_proj": 1},
        "alpha_pattern": {"^blocks.1.fc": 7, ".*q_proj": 5},
    },
    "conv": {"target_modules": ["stem"]},
    "embedding": {"target_modules": ["position"]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["head"]},
    "bias": {"target_modules": ["q_proj"], "bias": "all"},
}


@pytest.mark.parametrize("case", CASES)
def test_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    base, merged = adapter(tmp_path / "adapter", **CASES[case])
    state = on_base(tmp_path)
    assert set(state.tensors) == set(merged)
    assert "PEFT LoRA adapter" in state.format
    assert any(not torch.equal(state.tensors[n], base[n]) for n in base)
    for name, tensor in merged.items():
        torch.testing.assert_close(state.tensors[name], tensor, rtol=1e-6, atol=1e-6)


class Mixed(nn.Module):
    """A Linear and transformers' Conv1D, which peft tells apart and its config does not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1d, self.linear = Conv1D(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("order", [["linear", "conv1d"], ["conv1d", "linear"]])
@pytest.mark.parametrize("width", [8, 6])
def test_layers_of_both_kinds_are_peft_s(order: list[str], width: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Mixed(width)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=order)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path / "adapter")
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    merged = model.merge_and_unload().state_dict()
    opened = open_state(tmp_path / "base.safetensors")
    state = open_state(tmp_path / "adapter", base=opened, conv1d={"conv1d.weight"})
    for name, tensor in merged.items():
        torch.testing.assert_close(state.tensors[name], tensor, rtol=1e-6, atol=1e-6)
    _config(tmp_path / "adapter", fan_in_fan_out=True)
    if width == 8:
        with pytest.raises(MdftError, match=r"whether '\w+' is stored \[in, out\] must be known"):
            on_base(tmp_path)
    else:  # the shapes tell
        torch.testing.assert_close(
            on_base(tmp_path).tensors["conv1d.weight"], merged["conv1d.weight"]
        )


def test_a_grouped_convolution_is_named(tmp_path: Path) -> None:
    net = nn.ModuleDict({"g": nn.Conv2d(8, 8, 3, groups=8)})
    config = peft.LoraConfig(r=8, target_modules=["g"])
    peft.get_peft_model(copy.deepcopy(net), config).save_pretrained(tmp_path / "adapter")
    save_file(net.state_dict(), tmp_path / "base.safetensors")
    with pytest.raises(MdftError, match=r"'g' is a grouped convolution \(8 groups\)"):
        on_base(tmp_path)


def test_the_bases_that_adapters_name_are_compared(tmp_path: Path) -> None:
    states = []
    for i, name in enumerate(("org/vit", "elsewhere/vit", "/home/me/other", "org/clip")):
        adapter(tmp_path / str(i) / "adapter", target_modules=["fc"])
        _config(tmp_path / str(i) / "adapter", base_model_name_or_path=name)
        states.append(on_base(tmp_path / str(i)))
        assert states[-1].facts.trained_on == name
    base = open_state(tmp_path / "0" / "base.safetensors")
    (note,) = compare_bases(base, states[:3])
    assert "'org/vit', 'elsewhere/vit', '/home/me/other'" in note
    with pytest.raises(MdftError, match=r"its base is 'org/clip', but .* says 'org/vit'"):
        list(compare_bases(base, states))
    named = dataclasses.replace(base, facts=SourceFacts(name="org/vit"))
    assert not list(compare_bases(named, states[:2]))
    with pytest.raises(MdftError, match=r"base.safetensors says 'org/vit'"):
        list(compare_bases(named, states[3:]))


def test_a_base_in_half_precision_does_not_round_the_difference_away(tmp_path: Path) -> None:
    base, merged = adapter(tmp_path / "adapter", torch.float16, target_modules=["fc"])
    state = on_base(tmp_path)
    name = "blocks.0.fc.weight"
    files = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    root = "base_model.model.blocks.0.fc.lora_"
    delta = 1.5 * files[f"{root}B.weight"].double() @ files[f"{root}A.weight"].double()
    assert state.tensors[name].dtype == torch.float32
    assert torch.equal(state.tensors[name], (base[name].double() + delta).float())
    assert state.formed == {"blocks.0.fc.weight", "blocks.1.fc.weight"}
    convert(tmp_path / "adapter", tmp_path / "m.safetensors", base=tmp_path / "base.safetensors")
    written = load_file(tmp_path / "m.safetensors")
    assert torch.equal(written[name], (base[name].double() + delta).float().half())
    torch.testing.assert_close(written[name], merged[name], rtol=2e-3, atol=2e-3)


def test_a_prefix_on_either_side(tmp_path: Path) -> None:
    base, merged = adapter(tmp_path / "adapter", target_modules=["q_proj", "fc"])
    longer = {f"vit.{name}": tensor for name, tensor in base.items()}
    save_file(longer, tmp_path / "longer.safetensors")
    state = on_base(tmp_path, "longer")
    for name, tensor in merged.items():
        torch.testing.assert_close(state.tensors[f"vit.{name}"], tensor)
    part = {n.removeprefix("blocks."): t for n, t in base.items() if n.startswith("blocks.")}
    save_file(part, tmp_path / "part.safetensors")
    state = on_base(tmp_path, "part")
    torch.testing.assert_close(state.tensors["1.fc.weight"], merged["blocks.1.fc.weight"])
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(MdftError, match=r"x.safetensors has no weight of the adapter's module"):
        on_base(tmp_path, "x")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type must be 'LORA', got 'IA3'"),
        ({"peft_type": "LOHA"}, r"peft_type must be 'LORA', got 'LOHA'"),
        ({"use_dora": True}, r"'use_dora' must not be set, got True: DoRA rescales"),
        ({"lora_bias": True}, r"'lora_bias' must not be set"),
        ({"init_lora_weights": "pissa_niter_4"}, r"must leave the base as it is"),
        ({"r": 4}, r"must have rank 4 as its config says, got lora_A \[2, 8\]"),
        ({"r": None}, r"r and lora_alpha must be numbers"),
        ({"rank_pattern": {"(a+)+q": 2}}, r"a pattern too involved"),
        ({"rank_pattern": {"(": 2}}, r"no valid pattern"),
        ({"rank_pattern": {"a{99999999999999}": 2}}, r"no valid pattern"),
        ({"alpha_pattern": {"a?" * 60 + "a" * 60: 2}}, r"may take too long to be matched"),
        ({"rank_pattern": {"(a|a)" * 40: 2}}, r"may take too long to be matched"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    adapter(tmp_path / "adapter", target_modules=["fc"])
    _config(tmp_path / "adapter", **changes)
    with pytest.raises(MdftError, match=message):
        on_base(tmp_path)


def test_multihead_attention_is_refused(tmp_path: Path) -> None:
    base, merged = adapter(tmp_path / "adapter", target_modules=["attention"])
    files = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    b, a = (next(t for n, t in files.items() if f"out_proj.lora_{x}" in n) for x in "BA")
    added = merged["attention.out_proj.weight"] - base["attention.out_proj.weight"]
    torch.testing.assert_close(added, 2 * 1.5 * b @ a)  # why it is refused; once: read it then
    with pytest.raises(MdftError, match=r"is an nn.MultiheadAttention, to whose out_proj peft"):
        on_base(tmp_path)


def test_a_dora_adapter_and_a_lone_one_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "dora", target_modules=["fc"], use_dora=True)
    with pytest.raises(MdftError, match=r"DoRA rescales each weight"):
        open_state(tmp_path / "dora")
    adapter(tmp_path / "lora", target_modules=["fc"])
    with pytest.raises(MdftError, match=r"lora: is a LoRA adapter, .*the base must be given too"):
        open_state(tmp_path / "lora")


def plain(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter by hand, of rank 1."""
    folder.mkdir()
    root = "base_model.model."
    save_file({root + n: t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def halves(module: str) -> dict[str, Tensor]:
    return {
        f"{module}.lora_A.weight": torch.ones(1, 4),
        f"{module}.lora_B.weight": torch.ones(4, 1),
    }


def test_two_towers_that_fit_are_an_error(tmp_path: Path) -> None:
    towers = {f"{t}_model.layers.0.q.weight": torch.zeros(4, 4) for t in ("text", "vision")}
    save_file(towers, tmp_path / "both.safetensors")
    both = open_state(tmp_path / "both.safetensors")
    folder = plain(tmp_path / "adapter", halves("layers.0.q"))
    with pytest.raises(
        MdftError, match=r"must be one weight of .*\['text_model.layers.0.q.weight', 'vision_model"
    ):
        open_state(folder, base=both)
    towers["vision_model.layers.1.q.weight"] = torch.zeros(4, 4)
    save_file(towers, tmp_path / "more.safetensors")
    more = open_state(tmp_path / "more.safetensors")
    folder = plain(tmp_path / "longer", halves("layers.0.q") | halves("layers.1.q"))
    state = open_state(folder, base=more)  # one tower alone has both layers
    assert state.formed == {f"vision_model.layers.{i}.q.weight" for i in (0, 1)}


def test_one_weight_has_one_change(tmp_path: Path) -> None:
    save_file({"m.q.weight": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    base = open_state(tmp_path / "base.safetensors")
    twice = halves("m.q") | {"m.q.lora_A.default.weight": 2 * torch.ones(1, 4)}
    with pytest.raises(MdftError, match=r"got two tensors for one: .*lora_A.* and .*lora_A"):
        open_state(plain(tmp_path / "twice", twice), base=base)
    whole = halves("m.q") | {"m.q.base_layer.weight": torch.ones(4, 4)}
    with pytest.raises(MdftError, match=r"got 'm.q.weight' whole and as B·A"):
        open_state(plain(tmp_path / "whole", whole), base=base)


def test_long_names_are_refused(tmp_path: Path) -> None:
    name = "a" * 500
    save_file({f"{name}.weight": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    base = open_state(tmp_path / "base.safetensors")
    folder = plain(tmp_path / "adapter", halves(name), rank_pattern={"a*a*a*b": 1})
    with pytest.raises(MdftError, match=r"names must be at most 500 characters, got 514: 'aaa"):
        open_state(folder, base=base)
    name = ".".join("a" * 100)
    folder = plain(tmp_path / "dots", halves(name) | halves("b"), rank_pattern={".*.*.*b": 1})
    with pytest.raises(MdftError, match=r"may take too long to be matched with 2 modules"):
        open_state(folder, base=base)
