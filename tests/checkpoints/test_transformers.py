# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers: read lazily, under the module's names, with what their JSON says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdft_fast import MetaModel, Pool
from mdft_fast.checkpoints import convert, edges_before_crop, open_state
from mdft_fast.checkpoints.metadata import resizing
from mdft_fast.errors import MdftError
from mdft_fast.model import Recognized, build_backbone, recognize
from mdft_fast.pool import Head

transformers = pytest.importorskip("transformers")
KWARGS: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
CLIP = {**KWARGS, "intermediate_size": 32, "projection_dim": 12}
MODELS: dict[str, dict[str, Any]] = {
    "CLIPVisionModel": CLIP,
    "CLIPVisionModelWithProjection": CLIP,
    "ViTModel": {**KWARGS, "intermediate_size": 32},
    "Dinov2Model": KWARGS,
}


def spec(name: str, **more: Any) -> dict[str, Any]:
    return {"library": "transformers", "name": name, "kwargs": MODELS[name] | more}


def library_model(name: str, seed: int, **options: Any) -> Any:
    kind = getattr(transformers, name)
    torch.manual_seed(seed)
    model = kind(kind.config_class(**MODELS[name]), **options).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def feature(model: Any, x: Tensor) -> Tensor:
    out = model(x)
    field = "image_embeds" if "Projection" in type(model).__name__ else "pooler_output"
    wanted: Tensor = out[field]
    return wanted


def pool_of(folders: list[Path], backbone: nn.Module, features: int, **more: Any) -> Pool:
    names = [f"task{k}" for k in range(len(folders) - 1)]
    head = Head(torch.ones(2, features))
    tasks = [SimpleNamespace(name=n, class_names=("a", "b"), head=head) for n in names]
    preprocess = {"size": 16, "mean": 0.5, "std": 0.5} | more
    return Pool.from_checkpoints(
        folders[0], folders[1:], tasks, backbone=backbone, preprocess=preprocess
    )


@pytest.mark.parametrize("mode", ["resident", "layerwise"])
@pytest.mark.parametrize("name", MODELS)
def test_a_models_own_coefficients_give_its_features(name: str, mode: Any, tmp_path: Path) -> None:
    models = [library_model(name, seed) for seed in range(3)]
    folders = [tmp_path / str(k) for k in range(3)]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    with torch.device("meta"):
        backbone = build_backbone(spec(name))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pool = pool_of(folders, build_backbone(spec(name)), feature(models[0], x).shape[1])
    assert {n for n, _ in backbone.named_parameters()} == {
        n for n, _ in models[0].named_parameters()
    }
    assert pool.activation == ("quick_gelu" if "CLIP" in name else "gelu")
    meta = MetaModel(build_backbone(spec(name)), pool, mode=mode)
    for k, model in enumerate(models[1:]):
        with torch.no_grad(), meta.using(meta.individual(f"task{k}")):
            torch.testing.assert_close(meta.encode(x), feature(model, x), rtol=1e-5, atol=1e-5)


def test_a_classifiers_folder_gives_its_encoder(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**MODELS["ViTModel"])
    models = [transformers.ViTForImageClassification(config).eval() for _ in range(2)]
    for k, model in enumerate(models):
        model.save_pretrained(tmp_path / str(k))
    backbone = build_backbone(spec("ViTModel", add_pooling_layer=False))
    pool = pool_of([tmp_path / "0", tmp_path / "1"], backbone, 16)
    assert "names begin with 'vit.'" in pool.left_out["classifier.weight"]
    meta = MetaModel(backbone, pool)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), meta.using(meta.individual("task0")):
        wanted = models[1].vit(x).last_hidden_state[:, 0]
        torch.testing.assert_close(meta.encode(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["sharded", "pickle", "sharded pickle"])
def test_shards_and_pickles(form: str, tmp_path: Path) -> None:
    model = library_model("CLIPVisionModel", 0)
    state = model.state_dict()
    if form == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="8KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        model.config.save_pretrained(tmp_path)
        names, half = list(state), len(state) // 2
        parts = {"a.bin": names[:half], "b.bin": names[half:]}
        if form == "pickle":
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            for file, own in parts.items():
                torch.save({n: state[n] for n in own}, tmp_path / file)
            where = {n: file for file, own in parts.items() for n in own}
            index = tmp_path / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    opened = open_state(tmp_path)
    assert set(opened.tensors) == set(state)
    assert all(torch.equal(opened.tensors[name], value) for name, value in state.items())
    if form == "sharded":
        index = tmp_path / "model.safetensors.index.json"
        assert set(open_state(index).tensors) == set(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "../a.bin"}, r"files must lie beside the index, got '../a.bin'"),
        ({"a": "/etc/passwd"}, r"files must lie beside the index"),
        ({"a": "none.bin"}, r"names 'none.bin', which is missing"),
        ({"c": "a.bin"}, r"says that 'a.bin' holds tensor 'c', which it does not"),
        ({"b": None}, r"knows nothing of tensor 'b' in 'b.bin'"),
        ({"a": 7}, r"must have 'weight_map', tensor -> file, got none"),
    ],
)
def test_an_index_must_be_true(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    torch.save({"b": torch.ones(1), "d": torch.ones(1)}, tmp_path / "b.bin")
    where = {"a": "a.bin", "b": "b.bin", "d": "b.bin"} | change
    where = {key: file for key, file in where.items() if file is not None}
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(MdftError, match=message):
        open_state(tmp_path / "x.index.json")


PROCESSORS = {
    "clip": ({"do_center_crop": True, "crop_size": {"height": 16, "width": 16},
         "size": {"shortest_edge": 16}, "resample": 3, "image_mean": [0.4, 0.5, 0.6],
         "image_std": [0.2, 0.2, 0.2]},
        {"size": [16, 16], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2],
         "resize": "shortest", "interpolation": "bicubic", "crop_pct": 1.0}),
    "old clip": ({"feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True,
         "crop_size": 16, "size": 20}, {"size": [16, 16], "resize": "shortest", "crop_pct": 0.8}),
    "clip, which crops unless told": (
        {"image_processor_type": "CLIPImageProcessorFast", "crop_size": 16, "size": 16},
        {"size": [16, 16], "resize": "shortest", "crop_pct": 1.0}),
    "clip that is told not to crop": (
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": 16},
        {"size": [16, 16], "resize": "other"}),
    "deit, whose number is both edges": (
        {"feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": True,
         "crop_size": 16, "size": 20},
        {"size": [16, 16], "resize": "other"},
    ),
    "a number of nobody": ({"do_center_crop": True, "crop_size": 16, "size": 16},
        {"size": [16, 16], "resize": "other"}),
    "a square of nobody, which may be cut": (
        {"size": {"height": 20, "width": 20}, "crop_size": 16},
        {"size": [16, 16], "resize": "other"}),
    "an edge that would take all memory": (
        {"do_center_crop": True, "crop_size": 16, "size": {"shortest_edge": 16000}},
        {"size": [16, 16], "resize": "other"}),
    "an edge of nothing": (
        {"do_center_crop": True, "crop_size": 16, "size": {"shortest_edge": 0}},
        {"size": [16, 16], "resize": "other"}),
    "old vit": ({"feature_extractor_type": "ViTFeatureExtractor", "size": 16},
        {"size": [16, 16], "resize": "squash", "crop_pct": 1.0}),
    "vit": ({"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16},
         "resample": 2},
        {"size": [16, 16], "resize": "squash", "interpolation": "bilinear", "crop_pct": 1.0}),
    "dinov2": ({"do_center_crop": True, "crop_size": {"height": 16, "width": 16},
         "size": {"shortest_edge": 20}},
        {"size": [16, 16], "resize": "shortest", "crop_pct": 0.8}),
    "squash, then a crop": ({"do_center_crop": True, "crop_size": {"height": 16, "width": 24},
         "size": {"height": 20, "width": 30}},
        {"size": [16, 24], "resize": "squash", "crop_pct": 0.8}),
    "a crop of another shape": ({"do_center_crop": True, "crop_size": {"height": 16, "width": 24},
         "size": {"height": 20, "width": 20}}, {"size": [16, 24], "resize": "other"}),
    "a crop that pads": ({"do_center_crop": True, "crop_size": 16, "size": {"shortest_edge": 12}},
        {"size": [16, 16], "resize": "other"}),
    "squash, then a crop of it all": (
        {"do_center_crop": True, "crop_size": {"height": 16, "width": 16},
         "size": {"height": 16, "width": 16}},
        {"size": [16, 16], "resize": "squash", "crop_pct": 1.0},
    ),
    "a crop that is not read": (
        {"do_center_crop": True, "crop_size": {"shortest_edge": 16}, "size": 16},
        {"size": [16, 16], "resize": "other"}),
    "no crop": ({"size": {"shortest_edge": 16}}, {"size": [16, 16], "resize": "other"}),
    "no resizing": ({"size": 16, "do_resize": False}, {"size": [16, 16], "resize": "other"}),
    "another filter": ({"resample": 1}, {"size": [16, 16], "interpolation": "other"}),
    "not normalized": ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"size": [16, 16], "mean": [0.0] * 3, "std": [1.0] * 3}),
    "not rescaled": ({"do_rescale": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"size": [16, 16]}),
    "rescaled by another factor": (
        {"rescale_factor": 1 / 127.5, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"size": [16, 16]}),
    "nothing": ({}, {"size": [16, 16]}),
    "nonsense": (
        {"size": "x", "image_mean": [1], "resample": "3"}, {"size": [16, 16], "resize": "other"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_the_processors_file_says_how_images_are_made(case: str, tmp_path: Path) -> None:
    given, wanted = PROCESSORS[case]
    library_model("CLIPVisionModel", 0).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    assert open_state(tmp_path).facts.preprocess() == wanted


def test_what_is_not_done_here_must_be_given(tmp_path: Path) -> None:
    models = [library_model("Dinov2Model", seed) for seed in range(2)]
    folders = [tmp_path / str(k) for k in range(2)]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["no crop"][0]))
    backbone = build_backbone(spec("Dinov2Model"))
    message = r"'resize' must be given, 'shortest' or 'squash', as .*0 says another .*resize"
    for said in ({}, {"resize": "other"}):  # "other": what a recipe's preprocess takes from it
        with pytest.raises(MdftError, match=message):
            pool_of(folders, backbone, 16, **said)
    assert pool_of(folders, backbone, 16, resize="shortest").preprocess["resize"] == "shortest"


def test_what_is_cut_out_is_the_processors(tmp_path: Path) -> None:
    folders = [tmp_path / str(k) for k in range(2)]
    for seed, folder in enumerate(folders):
        library_model("Dinov2Model", seed).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["dinov2"][0]))
    backbone = build_backbone(spec("Dinov2Model"))
    assert pool_of(folders, backbone, 16).preprocess["crop_pct"] == 0.8
    with pytest.raises(MdftError, match=r"'crop_pct' must be 0.8 as .*0 says, got 1.0"):
        pool_of(folders, backbone, 16, crop_pct=1.0)


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({}, {}),
        ({"crop_mode": "squash"}, {"resize": "squash"}),
        ({"crop_mode": "border"}, {"resize": "other"}),
        ({"interpolation": "random"}, {"interpolation": "other"}),
        ({"crop_pct": "all"}, {"crop_pct": None}),
        ({"crop_pct": 1e-3}, {"crop_pct": None}),
        ({"crop_pct": None}, {"crop_pct": 0.875}),
        ({"fixed_input_size": True}, {}),
    ],
    ids=str,
)
def test_a_folder_of_timm(trained: dict[str, Any], said: dict[str, Any], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models._hub import save_for_hf

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    save_for_hf(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= trained
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = open_state(tmp_path)
    assert state.format.startswith("timm folder (test_vit)")
    wanted = {
        "size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "shortest",
        "interpolation": "bicubic", "crop_pct": 0.95,
    } | said  # fmt: skip
    assert state.facts.preprocess() == {k: v for k, v in wanted.items() if v is not None}
    with torch.device("meta"):
        found = recognize(tmp_path, state)
    assert found == Recognized("timm", "test_vit", config["model_args"] | {"num_classes": 0})
    del config["model_args"]  # as older ones are; the size is then said of models that have one
    (tmp_path / "config.json").write_text(json.dumps(config))
    fixed = [160, 160] if "fixed_input_size" in trained else None
    assert open_state(tmp_path).facts.preprocess().get("size") == fixed
    del config["pretrained_cfg"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_state(tmp_path).facts.preprocess() == {}, "says nothing, no default either"


@pytest.mark.parametrize(("crop", "edge"), [(16, 93), (224, 256), (224, 354), (518, 592)])
def test_a_share_gives_back_the_edge(crop: int, edge: int) -> None:
    said = resizing([edge], [crop, crop])
    assert said["resize"] == "shortest"
    assert edges_before_crop([crop], said["crop_pct"]) == [edge]


def test_contradictions(tmp_path: Path) -> None:
    model = library_model("CLIPVisionModel", 0)
    model.save_pretrained(tmp_path)
    gelu = build_backbone(spec("CLIPVisionModel", hidden_act="gelu"))
    with pytest.raises(MdftError, match=r"must be 'quick_gelu' as .* says, got 'gelu'"):
        pool_of([tmp_path, tmp_path], gelu, 16)
    backbone = build_backbone(spec("CLIPVisionModel"))
    with pytest.raises(MdftError, match=r"preprocess: 'size' must be \[16, 16\] as .* says, got 8"):
        pool_of([tmp_path, tmp_path], backbone, 16, size=8)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("BertModel", {}, r"must be one of \['CLIPVisionModel'.*got 'BertModel'"),
        ("ViTModel", {"hiden_size": 3}, r"'kwargs.hiden_size' must be one of.*'hidden_size'"),
        ("ViTModel", {"attn_implementation": "flash_attention_2"}, r"must be one of \['eager'"),
        ("ViTModel", {"add_pooling_layer": 1}, r"add_pooling_layer' must be true or false"),
        ("Dinov2Model", {"add_pooling_layer": False}, r"is ViTModel's"),
        ("ViTModel", {"auto_map": {"x": "y"}}, r"'kwargs.auto_map' must be one of"),
        ("ViTModel", {"name_or_path": "x"}, r"names a file, weights or a download"),
    ],
)
def test_specs_that_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MdftError, match=message):
        build_backbone({"library": "transformers", "name": name, "kwargs": kwargs})


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_library_that_renames(tmp_path: Path) -> None:
    """peft writes the module's names, the folder has the library's file names."""
    peft = pytest.importorskip("peft")
    base = library_model("ViTModel", 0)
    base.save_pretrained(tmp_path / "base")
    target = next(n for n, _ in base.named_modules() if n.endswith("q_proj")).rpartition(".")[2]
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    x = torch.randn(2, 3, 16, 16)
    backbone = build_backbone(spec("ViTModel"))
    pool = pool_of([tmp_path / "base", tmp_path / "adapter"], backbone, 16)
    meta = MetaModel(backbone, pool)
    with torch.no_grad(), meta.using(meta.individual("task0")):
        wanted = feature(adapted.merge_and_unload(), x)
        torch.testing.assert_close(meta.encode(x), wanted, rtol=1e-5, atol=1e-5)
    # Without a backbone nobody knows both names; the error says where there is one.
    wanted = (
        rf"transformers 5 renames .* `pool: {{base: .*/base, models: {re.escape(str(tmp_path))}}}`"
        r" and `backbone: {library: transformers, name: ViTModel, .* with a task 'adapter'"
    )
    with pytest.raises(MdftError, match=wanted):
        convert(tmp_path / "adapter", tmp_path / "out.safetensors", base=tmp_path / "base")
