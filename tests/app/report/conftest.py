# SPDX-License-Identifier: Apache-2.0
"""A made-up result with the shape of a real one: eight tasks, 152 tensors of a ViT."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Result = dict[str, Any]
Write = Callable[..., Path]  # what the fixture folder gives
TASKS = {  # name: classes, pre-trained, individual, share kept
    "omniglot242": (242, 0.16, 0.48, 0.055),
    "gtsrb": (43, 0.19, 0.74, 0.74),
    "aid30": (30, 0.46, 0.83, 0.65),
    "mnist": (10, 0.50, 0.975, 0.59),
    "fashion_mnist": (10, 0.64, 0.84, 0.84),
    "sign_digits": (10, 0.58, 0.947, 0.30),
    "dtd10": (10, 0.58, 0.747, 0.56),
    "trashnet": (6, 0.55, 0.848, 0.74),
}
INSIDE = [f"{layer}.{kind}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1",
          "mlp.fc2") for kind in ("weight", "bias")]  # fmt: skip
COLUMNS = [
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
    *(f"blocks.{i}.{name}" for i in range(12) for name in INSIDE),
    *("norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"),
]
PHASES = {  # name: seconds, peak MB
    "load pool": (0.61, 412.0),
    "teachers": (12.4, 655.0),
    "construct": (48.2, 1240.0),
    "specialize": (61.7, 1190.0),
    "evaluate": (20.3, None),
}


def _lambdas(rng: random.Random, center: float, own: int | None = None) -> list[list[float]]:
    return [
        [rng.gauss(0.85 if k == own else center, 0.06) for _ in COLUMNS] for k in range(len(TASKS))
    ]


def _path(rng: random.Random, start: float, end: float) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 0.9 * 0.85**step, "distance": 11.0 * math.exp(-step / 9),
         "accuracy": end + (start - end) * math.exp(-step / 4) + rng.gauss(0, 0.004),
         "others": 0.66 - 0.012 * step}
        for step in range(21)
    ]  # fmt: skip


def _entropy(rng: random.Random, share: float) -> list[int]:
    """Returns a histogram of 384 samples: ``share`` of them below 0.4, the 16th of 40 bins."""
    low = round(384 * share)
    counts = [0] * 40
    for i in range(384):
        counts[int(16 * rng.random() ** 2) if i < low else 16 + int(24 * rng.random() ** 1.5)] += 1
    return counts


def _confusion(rng: random.Random, name: str, classes: int, right: float) -> dict[str, Any]:
    pairs: Counter[tuple[int, int]] = Counter()
    for _ in range(400):
        true = rng.randrange(classes)
        near = (true + rng.choice([1, 1, 1, 2, 5])) % classes
        pairs[true, true if rng.random() < right else near] += 1
    true, predicted = zip(*sorted(pairs), strict=True)
    return {
        "classes": [f"{name} {i}" for i in range(classes)],
        "true": list(true),
        "predicted": list(predicted),
        "count": [pairs[key] for key in sorted(pairs)],
    }


def make_result() -> dict[str, Any]:
    rng = random.Random(0)
    individual = {name: numbers[2] for name, numbers in TASKS.items()}
    specialized = {name: value + 0.007 for name, value in individual.items()}
    meta = {name: 0.85 * value for name, value in individual.items()}
    tasks = [
        {"name": name, "classes": classes, "unlabelled": 480, "learn": 384, "holdout": 96,
         "kept": round(384 * share), "kept_share": share, "test": 400,
         "samples": name.encode().hex().ljust(64, "0"), "entropy": _entropy(rng, share)}
        for name, (classes, _, _, share) in TASKS.items()
    ]  # fmt: skip
    return {
        "schema": 1, "created": "2026-02-03T04:05:06+00:00", "commit": "0123456789abcdef",
        "versions": {"python": "3.11.7", "torch": "2.11.0", "mdft_fast": "0.1.0"},
        "device": "cpu", "threads": 2, "kernels": {"cpu": "avx2"}, "seed": 0,
        "transductive": False, "preset": "default",
        "pool": {
            "checksum": "ab" * 32, "codec": "fp32", "parameters": 5_500_000,
            "tensors": len(COLUMNS), "left_out": {"norm.num_batches": "integer buffer"},
            "tasks": tasks,
        },
        "trainable": len(TASKS) * len(COLUMNS),
        "columns": COLUMNS,
        "coefficients": {
            "start": 0.3,
            "construct": _lambdas(rng, 0.32),
            "specialize": {name: _lambdas(rng, 0.1, k) for k, name in enumerate(TASKS)},
        },
        "accuracy": {
            "pretrained": {name: numbers[1] for name, numbers in TASKS.items()},
            "individual": individual,
            "task_arithmetic": {name: 0.65 * value for name, value in individual.items()},
            "meta": meta,
            "specialized": specialized,
            "control": {name: value + 0.001 for name, value in specialized.items()},
        },
        "intervals": {name: {"difference": 0.007, "low": -0.008, "high": 0.022} for name in TASKS},
        "comparisons": {
            "specialized-control": {"difference": -0.001, "low": -0.006, "high": 0.004}
        },
        "specialize": {name: _path(rng, meta[name], specialized[name]) for name in TASKS},
        "holdout": {"meta": 0.812, "start": 1.404},
        "phases": [{"name": n, "seconds": s, "peak_mb": mb} for n, (s, mb) in PHASES.items()],
        "warnings": [],
        "filter": {"enabled": True, "mu": 0.4, "entropy_of": "teacher"},
        "confusion": {
            name: _confusion(rng, name, numbers[0], meta[name]) for name, numbers in TASKS.items()
        },
        "recipe": "version: 1\npreset: default\n",
    }  # fmt: skip


def make_metrics() -> list[dict[str, Any]]:
    rng = random.Random(1)
    lines: list[dict[str, Any]] = []
    for step in range(1, 101):
        losses = {
            name: numbers[0] ** 0.4 * (0.4 + math.exp(-step / 25)) + rng.gauss(0, 0.15)
            for name, numbers in TASKS.items()
        }
        lines.append(
            {"stage": "construct", "task": None, "step": step, "loss": sum(losses.values()),
             "losses": losses, "kept": dict.fromkeys(TASKS, 1.0), "seconds": 0.48,
             "samples_per_s": 266.0, "lr": 0.01}
        )  # fmt: skip
    return lines


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def nearly_nothing(result: dict[str, Any]) -> dict[str, Any]:
    """One column of λ, no labels, no stage 2, nothing timed."""
    result.update(accuracy={}, intervals={}, comparisons={}, specialize={}, phases=[], commit=None)
    result.update(confusion={}, holdout={}, columns=["all"], trainable=8)
    result["coefficients"].update(specialize={}, construct=[[0.3]] * 8, start=[[0.3]] * 8)
    result["pool"]["left_out"] = {}
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    def write(content: dict[str, Any], metrics: list[dict[str, Any]] | None = None) -> Path:
        lines = make_metrics() if metrics is None else metrics
        (tmp_path / "result.json").write_text(json.dumps(content))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
        (tmp_path / "recipe.yaml").write_text("version: 1\n")
        return tmp_path

    return write
