# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool

SHARED = Path(__file__).resolve().parents[3] / "shared" / "pool"


class Tiny(nn.Module):
    """Ties, a frozen parameter, a float and an integer buffer, an odd size and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 5)
        self.again = nn.Linear(12, 5)
        self.again.weight = self.embed.weight
        self.norm = nn.LayerNorm(5)
        self.wide = nn.Linear(5, 301)
        self.out = nn.Linear(301, 4)
        self.gain = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("shift", torch.zeros(4))
        self.register_buffer("index", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.flatten(1)) + self.again(x.flatten(1)))
        return self.out(self.wide(x)) * self.gain * self.frozen + self.shift


@dataclasses.dataclass
class Parts:
    """Arguments of ``Pool.from_checkpoints``, tiny, to be bent by a test."""

    base: Any
    models: Any
    tasks: list[Any]
    options: dict[str, Any]

    def build(self) -> Pool:
        return Pool.from_checkpoints(self.base, self.models, self.tasks, **self.options)

    def pack(self, path: Path, **more: Any) -> Pool:
        return Pool.pack(path, self.base, self.models, self.tasks, **self.options, **more)


def tiny_parts(K: int = 3, dtype: torch.dtype = torch.float16) -> Parts:
    generator = torch.Generator().manual_seed(0)

    def state(like: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        made = {}
        for name, tensor in like.items():
            if name in ("frozen", "shift", "index") or not tensor.is_floating_point():
                made[name] = tensor.clone()
            else:
                noise = torch.randn(tensor.shape, generator=generator) * scale
                made[name] = (tensor.float() + noise).to(dtype)
        made["again.weight"] = made["embed.weight"].clone()
        return made

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Tiny()
    base = state(dict(backbone.state_dict()), 1.0)
    tasks = [
        SimpleNamespace(
            name=f"task{k}",
            class_names=tuple("abcdef"[: k + 2]),
            head=Head(torch.randn(k + 2, 4, generator=generator), normalize=bool(k % 2)),
        )
        for k in range(K)
    ]
    options = {"backbone": backbone, "preprocess": {"size": 2, "mean": 0.5, "std": [0.5, 0.4, 0.3]}}
    return Parts(base, [state(base, 0.01) for _ in range(K)], tasks, options)


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Returns what changes the content of a pool's ``pool.json``."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "pool.json").read_text())
        change(content)
        content.pop("sha256", None)  # as an older version wrote it
        (folder / "pool.json").write_text(json.dumps(content))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def flip(path: Path, place: int) -> None:
    """Changes a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def refuses(folder: Path, message: str, **options: bool) -> None:
    """Sees a damaged pool refused in one sentence."""
    with pytest.raises(MdftError, match=message) as caught:
        Pool.open(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def parts() -> Parts:
    return tiny_parts()


@pytest.fixture
def files(parts: Parts, tmp_path: Path) -> Parts:
    """The same parts as safetensors files in ``tmp_path / 'in'``."""
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(parts.base, folder / "base.safetensors")
    paths = {}
    for task, model in zip(parts.tasks, parts.models, strict=True):
        paths[task.name] = folder / f"{task.name}.safetensors"
        save_file(model, paths[task.name])
    return Parts(folder / "base.safetensors", paths, parts.tasks, parts.options)


@pytest.fixture(scope="session")
def real() -> Parts:
    """The ViT-Tiny pool beside the repository, as arguments of ``Pool.from_checkpoints``."""
    timm = pytest.importorskip("timm")
    if not (SHARED / "pool.json").is_file():
        pytest.skip("the real pool is not at ../shared/pool, beside the repository")
    facts = json.loads((SHARED / "pool.json").read_text())
    spec = facts["architecture"]
    tasks = [
        SimpleNamespace(
            name=task["name"],
            class_names=tuple(str(i) for i in range(task["classes"])),
            head=Head.from_file(SHARED / f"heads/{task['name']}.safetensors", normalize=True),
        )
        for task in facts["tasks"]
    ]
    options = {
        "backbone": timm.create_model(spec["name"], pretrained=False, **spec["kwargs"]),
        "backbone_spec": spec,
        "preprocess": {k: facts["input"][k] for k in ("size", "mean", "std")},
    }
    models = {task.name: SHARED / f"models/{task.name}.safetensors" for task in tasks}
    return Parts(SHARED / "base.safetensors", models, tasks, options)


@pytest.fixture(scope="session")
def real_pool(real: Parts) -> Pool:
    return real.build()
