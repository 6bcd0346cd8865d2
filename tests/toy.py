# SPDX-License-Identifier: Apache-2.0
"""A recipe of two easy tasks on files, for timm's smallest ViT: what commands and examples take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from mdft_fast.model import build_backbone

SPEC = {
    "library": "timm",
    "name": "test_vit",
    "kwargs": {"img_size": 32, "num_classes": 0, "proj_drop_rate": 0.1},  # reads random numbers
}
CLASSES = {"shades": ("dark", "light", "mid"), "sides": ("left", "right")}


def draw(task: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images ``[n, 32, 32, 3]`` and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES[task]), n)
    images = generator.integers(0, 60, (n, 32, 32, 3)) + generator.integers(0, 100, (n, 1, 1, 1))
    if task == "shades":
        images[..., 0] += np.array([0, 90, 45])[labels][:, None, None]
    else:
        for image, label in zip(images, labels, strict=True):
            image[:, 16 * label : 16 * (label + 1)] += 110
    return images.astype(np.uint8), labels


def write_toy(folder: Path, out: str = "out") -> Path:
    """Writes a base, test images, unlabelled and labelled ones, and a recipe: no models, no heads.

    Args:
        folder: where to.
        out: below it models and heads are expected.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = build_backbone(SPEC).state_dict()
    generator = torch.Generator().manual_seed(0)
    noise = {k: 0.05 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
    save_file({k: (v + noise[k]).half() for k, v in base.items()}, folder / "base.safetensors")
    tasks: list[dict[str, Any]] = []
    (folder / "train").mkdir()
    for name, classes in CLASSES.items():
        x, y = draw(name, 40, seed=1)
        unlabelled = draw(name, 40, seed=2)[0]
        np.savez(folder / f"{name}.npz", x_unlabelled=unlabelled, x_test=x, y_test=y)
        x, y = draw(name, 90, seed=3)
        np.savez(folder / "train" / f"{name}.npz", x=x, y=y)
        tasks.append({
            "name": name, "class_names": list(classes),
            "head": {"file": f"{out}/heads/{name}.safetensors", "normalize": True},
            "adapt": {"npz": f"{name}.npz", "x": "x_unlabelled"},
            "evaluate": {"npz": f"{name}.npz", "x": "x_test", "y": "y_test"},
        })  # fmt: skip
    content = {
        "version": 1, "start": 0.3, "pool": {"base": "base.safetensors", "models": f"{out}/models"},
        "backbone": SPEC, "preprocess": {"size": 32, "mean": 0.5, "std": 0.5}, "tasks": tasks,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def write_models(recipe: Path, out: str = "out") -> None:
    """Puts models and heads where the recipe expects them; they were never trained."""
    from safetensors.torch import load_file

    base = load_file(recipe.parent / "base.safetensors")
    generator = torch.Generator().manual_seed(1)
    for kind in ("models", "heads"):
        (recipe.parent / out / kind).mkdir(parents=True)
    for name, classes in CLASSES.items():
        model = {k: (v + 0.03 * torch.randn(v.shape, generator=generator)).half()
                 for k, v in base.items()}  # fmt: skip
        save_file(model, recipe.parent / out / "models" / f"{name}.safetensors")
        head = torch.randn(len(classes), 64, generator=generator)
        save_file({"weight": 3 * head}, recipe.parent / out / "heads" / f"{name}.safetensors")
