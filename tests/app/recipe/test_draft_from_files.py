# SPDX-License-Identifier: Apache-2.0
"""From a folder as people have it to a learned run: init, fill in what is marked, plan, run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mdft_fast.app.forecast import plan
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import run
from mdft_fast.checkpoints import SourceFacts, State, lora
from mdft_fast.model import Recognized, build_backbone, recognize
from tests.app.conftest import call
from tests.checkpoints.corpus import MEAN, SIZE, STD, save_encoder, save_head, tiny_clip
from tests.data.on_disk import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")
TASKS = ("DTD", "MNIST")
SMALL = ("construct.steps=2", "construct.batch=2", "specialize.steps=1", "specialize.batch=2",
         "specialize.control=false")  # fmt: skip
KWARGS: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE,
    "patch_size": 8, "intermediate_size": 32,
}  # fmt: skip
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE},
             "resample": 2, "image_mean": list(MEAN), "image_std": list(STD)}  # fmt: skip


def write_tasks(folder: Path, features: int, *, heads: bool = True) -> None:
    for seed, name in enumerate(TASKS):
        write_folders(folder / "data" / name.lower(), seed=seed)
        if heads:
            (folder / "heads").mkdir(exist_ok=True)
            weight = torch.randn(3, features, generator=torch.Generator().manual_seed(seed))
            save_file({"weight": 3 * weight}, folder / "heads" / f"{name.lower()}.safetensors")


def follow(folder: Path, marked: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Drafts a recipe, fills in what is marked and nothing else, and runs it."""
    said = call("init", folder)
    file = folder / "recipe.yaml"
    text = filled = file.read_text()
    for key, value in marked.items():
        assert f"{key}: CHANGE_ME" in filled, (key, text)
        filled = filled.replace(f"{key}: CHANGE_ME", f"{key}: {value}")
    assert "CHANGE_ME" not in filled, filled
    count = text.count("CHANGE_ME")
    assert (
        f"look for CHANGE_ME in it, {count} times" if count else "next: mdft run"
    ) in said.output
    file.write_text(filled)
    recipe = Recipe.load(file, SMALL)
    assert plan(recipe).fits
    result: dict[str, Any] = run(recipe, progress="off").result
    assert set(result["accuracy"]["specialized"]) == {task.name for task in recipe.tasks}
    return text, result


def test_task_vectors_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("torchvision")
    save_encoder(tmp_path / "zeroshot.pt", tiny_clip())
    for seed, name in enumerate(TASKS, 1):
        save_encoder(tmp_path / name / "finetuned.pt", tiny_clip(seed=seed))
        save_head(tmp_path / f"head_{name}.pt", torch.randn(3, 12))
    write_tasks(tmp_path, 12, heads=False)
    text, _ = follow(tmp_path, {"heads": "2"})
    assert "\n# preprocess: {size: [16, 16], mean: [0.48" in text
    assert "  # as zeroshot.pt says, where a run finds it" in text
    assert "  name: VisionTransformer " in text
    assert "quick_gelu: true" in text
    assert "    head: {file: head_DTD.pt}\n" in text
    assert "    adapt: {folder: data/dtd}" in text
    assert "    evaluate: {folder: data/dtd}\n" in text


def transformers_model(kind: str, seed: int) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    if kind == "CLIPModel":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2,
                "max_position_embeddings": 4}  # fmt: skip
        config = transformers.CLIPConfig(vision_config=KWARGS, text_config=text, projection_dim=12)
        return transformers.CLIPModel(config)
    of_class = getattr(transformers, kind)
    own = {k: v for k, v in KWARGS.items() if kind != "Dinov2Model" or k != "intermediate_size"}
    return of_class(of_class.config_class(**own))


@pytest.mark.parametrize(
    "kind",
    ["ViTForImageClassification", "ViTModel", "CLIPModel", "CLIPVisionModel",
     "CLIPVisionModelWithProjection", "Dinov2Model"],
)  # fmt: skip
def test_folders_of_transformers(kind: str, tmp_path: Path) -> None:
    shards = {"max_shard_size": "8KB"} if kind == "ViTModel" else {}
    base = transformers_model(kind, 0)
    base.save_pretrained(tmp_path / "base", **shards)
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for seed, name in enumerate(TASKS, 1):
        transformers_model(kind, seed).save_pretrained(tmp_path / "models" / name.lower(), **shards)
    projected = {"CLIPModel": 12, "CLIPVisionModelWithProjection": 512}
    write_tasks(tmp_path, projected.get(kind, 16))
    text, result = follow(tmp_path, {"normalize": "true"})
    assert "  base: base  " in text
    assert "\n# preprocess: {size: [16, 16]" in text
    assert "resize: squash, interpolation: bilinear" in text
    assert [task["name"] for task in result["pool"]["tasks"]] == ["dtd", "mnist"]


def test_what_a_base_does_not_say_is_marked(tmp_path: Path) -> None:
    """A processor that interpolates in a way that is not done here; a config alone has no mean."""
    model = transformers_model("Dinov2Model", 0)
    model.save_pretrained(tmp_path / "base")
    crop = {"do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE},
            "size": {"shortest_edge": 20}, "resample": 0}  # fmt: skip
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(crop))
    for seed, name in enumerate(TASKS, 1):
        transformers_model("Dinov2Model", seed).save_pretrained(tmp_path / name.lower())
    write_tasks(tmp_path, 16)
    marked = {"normalize": "true", "mean": "0.5", "std": "0.5", "interpolation": "bicubic"}
    text, _ = follow(tmp_path, marked)
    assert re.search(r"\n  size: \[16, 16\] +# as base says\n", text)
    assert re.search(r"\n  interpolation: CHANGE_ME +# bicubic or bilinear; base has another", text)
    assert re.search(r"\n  resize: shortest +# as base says\n", text)
    assert re.search(r"\n  crop_pct: 0.8 +# as base says\n", text)


@pytest.mark.filterwarnings("ignore")
def test_lora_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    transformers_model("ViTModel", 0).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for seed, name in enumerate(TASKS):
        base = transformers_model("ViTModel", 0)
        torch.manual_seed(seed)
        target = next(n for n, _ in base.named_modules() if n.endswith("q_proj")).split(".")[-1]
        config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
        peft.get_peft_model(base, config).save_pretrained(tmp_path / "models" / name)
    write_tasks(tmp_path, 16)
    follow(tmp_path, {"normalize": "true"})
    form = lora._sum

    def never(*given: Any) -> Any:
        form(*given)  # compares shapes
        return lambda: pytest.fail("a plan formed B·A")

    monkeypatch.setattr(lora, "_sum", never)
    plan(Recipe.load(tmp_path / "recipe.yaml", SMALL))


def test_an_open_clip_folder(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    (tmp_path / "base").mkdir()
    save_file(dict(tiny_clip().state_dict()), tmp_path / "base" / "open_clip_model.safetensors")
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
    config = {
        "model_cfg": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": {}},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic",
                           "resize_mode": "shortest"},
    }  # fmt: skip
    (tmp_path / "base" / "open_clip_config.json").write_text(json.dumps(config))
    for seed, name in enumerate(TASKS, 1):
        save_file(dict(tiny_clip(seed=seed).state_dict()), tmp_path / f"{name}.safetensors")
    write_tasks(tmp_path, 12)
    text, _ = follow(tmp_path, {"normalize": "true"})
    assert "heads: 2, quick_gelu: true}" in text


def of_model(name: str, activation: str | None, prefix: str = "") -> Recognized | None:
    with torch.device("meta"):
        tower = build_backbone({"library": "open_clip", "name": name})
    tensors = {prefix + key: tensor for key, tensor in tower.state_dict().items()}
    return recognize(Path("none"), State("file", tensors, facts=SourceFacts(activation)))


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual."])
def test_published_models_are_known_by_their_shapes(prefix: str) -> None:
    pytest.importorskip("open_clip")
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14"):
        quick = f"{name}-quickgelu"
        assert of_model(name, "gelu", prefix) == Recognized("open_clip", name)
        assert of_model(name, "quick_gelu", prefix) == Recognized("open_clip", quick)
        note = f"{name}, or {quick} for OpenAI's weights"
        assert of_model(name, None, prefix) == Recognized("open_clip", None, {}, note)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("positional_embedding", ()), ("positional_embedding", (0, 4)), ("proj", (16,)),
        ("transformer.resblocks.0.mlp.c_fc.weight", (64,)), ("conv1.weight", (0, 3, 8, 8)),
    ],
)  # fmt: skip
def test_a_tower_of_odd_shapes_is_not_known(name: str, shape: tuple[int, ...]) -> None:
    tensors = dict(tiny_clip().visual.state_dict())
    assert name in tensors
    assert recognize(Path("none"), State("file", tensors | {name: torch.ones(shape)})) is None


def test_a_tower_that_no_name_has() -> None:
    pytest.importorskip("open_clip")
    state = State("file", tiny_clip().visual.state_dict())
    found = recognize(Path("none"), state)
    assert found is not None
    assert found.kwargs == {
        "image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "mlp_ratio": 4.0,
        "output_dim": 12, "heads": None, "quick_gelu": None,
    }  # fmt: skip
    assert "heads: often width / 64; quick_gelu: true for" in found.note
    assert recognize(Path("none"), State("file", nn.Linear(2, 2).state_dict())) is None
