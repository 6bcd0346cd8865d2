# SPDX-License-Identifier: Apache-2.0
"""Where a whole run's time goes, phase by phase, and how many images pass a model in each.

    python benchmarks/run.py end_to_end RECIPE ... --json benchmarks/results/end_to_end.json

Each recipe is run twice, with an empty cache and again. Images are counted where the meta-model
encodes them, and compared with the floor: what the recipe asks for cannot be done with fewer. The
case "clip8" is a run with as many images as CLIP's eight data sets have, for the counts alone: its
images are noise of 8 x 8 pixels, its encoder a toy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import is_fake

from benchmarks.harness import origin
from mdft_fast import MetaModel, run
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import Phases
from mdft_fast.files import write_json
from mdft_fast.model import build_backbone

LEARNING = ("start", "stage 1", "stage 2")  # the phases in which a run learns
# Training images, test images and classes of the eight data sets that task arithmetic's models were
# fine-tuned on, in the splits of their authors.
CLIP8 = {
    "Cars": (8144, 8041, 196), "DTD": (3760, 1880, 47), "EuroSAT": (21600, 2700, 10),
    "GTSRB": (26640, 12630, 43), "MNIST": (60000, 10000, 10), "RESISC45": (18900, 6300, 45),
    "SUN397": (19850, 19850, 397), "SVHN": (73257, 26032, 10),
}  # fmt: skip
_TOY = {"image_size": 8, "patch_size": 4, "width": 64, "layers": 1, "heads": 1, "mlp_ratio": 1.0,
        "output_dim": 32}  # fmt: skip


class Counter:
    """Phases of one run with CPU seconds, and images encoded with and without a gradient."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._now = "between"

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts for the length of a ``with``."""
        encode, phase = MetaModel.encode, Phases.phase

        def encoded(meta: MetaModel, batch: Any) -> Any:
            key = "learned" if torch.is_grad_enabled() else "seen"
            images = next(iter(batch.values())) if isinstance(batch, dict) else batch
            if not is_fake(images):  # a forecast's
                self._row(self._now)[key] += len(images)
            return encode(meta, batch)

        @contextlib.contextmanager
        def timed(phases: Phases, name: str) -> Iterator[None]:
            began, wall, self._now = time.process_time(), time.perf_counter(), name
            try:
                with phase(phases, name):
                    yield
            finally:
                row = self._row(name)
                row["cpu_s"] += time.process_time() - began
                row["seconds"] += time.perf_counter() - wall
                self._now = "between"

        MetaModel.encode, Phases.phase = encoded, timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            MetaModel.encode, Phases.phase = encode, phase  # type: ignore[method-assign]

    def _row(self, name: str) -> dict[str, float]:
        return self.phases.setdefault(
            name, dict.fromkeys(("seconds", "cpu_s", "seen", "learned"), 0)
        )


def floor(recipe: Recipe, tasks: list[dict[str, Any]], models: int) -> dict[str, int]:
    """Returns how many images must pass a model.

    Args:
        recipe: what was run.
        tasks: the counts of the run's result.
        models: that are compared on each test image.
    """
    first, second, K = recipe.construct, recipe.specialize, len(tasks)
    curve = getattr(getattr(recipe, "evaluate", None), "curve", None)
    return {
        "learned": first.steps * first.batch * K
        + second.steps * second.batch * len(recipe.specialized) * (1 + second.control),
        "teachers": sum(task["unlabelled"] for task in tasks),
        "held out": 2 * sum(task["holdout"] for task in tasks),
        "tests": models * sum(task["test"] for task in tasks),
        "curve, at most": 0 if curve is None or not curve.samples else sum(
            curve.samples * len(set(curve.steps) - {0, second.steps}) + curve.samples + K
            for _ in recipe.specialized
        ),
    }  # fmt: skip


def measure(path: Path, case: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs a recipe once; returns a row of the JSON."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    recipe = Recipe.load(path, [*overrides, f"output={output}"])
    counter = Counter()
    began, wall = time.process_time(), time.perf_counter()
    with counter.watching():
        result = run(recipe).result
    cpu, seconds = time.process_time() - began, time.perf_counter() - wall
    learning = sum(counter.phases.get(name, {}).get("cpu_s", 0.0) for name in LEARNING)
    return {
        "case": case, "overrides": overrides, "seconds": seconds, "cpu_s": cpu,
        "learning_share": learning / cpu, "phases": counter.phases,
        "floor": floor(recipe, result["pool"]["tasks"], len(result["compared"])),
        "tests": sum(task["test"] for task in result["pool"]["tasks"]),
        "tasks": len(result["pool"]["tasks"]),
    }  # fmt: skip


def write_clip8(folder: Path) -> Path:
    """Writes a toy pool with data sets as large as CLIP's eight; returns its recipe."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    spec = {"library": "open_clip", "name": "VisionTransformer", "kwargs": _TOY}
    base = {name: value.clone() for name, value in build_backbone(spec).state_dict().items()}
    (folder / "models").mkdir(parents=True)
    save_file(base, folder / "base.safetensors")
    tasks = []
    for name, (train, test, classes) in CLIP8.items():
        model = {key: value + 0.01 * torch.randn(value.shape) for key, value in base.items()}
        save_file(model, folder / "models" / f"{name}.safetensors")
        head = torch.nn.functional.normalize(torch.randn(classes, 32))
        save_file({"weight": 100 * head}, folder / f"{name}.safetensors")
        np.savez(
            folder / f"{name}.npz",
            x=generator.integers(0, 256, (train, 8, 8, 3), np.uint8),
            x_test=generator.integers(0, 256, (test, 8, 8, 3), np.uint8),
            y_test=generator.integers(0, classes, test),
        )
        tasks.append({
            "name": name, "head": {"file": f"{name}.safetensors", "normalize": True},
            "adapt": {"npz": f"{name}.npz"},
            "evaluate": {"npz": f"{name}.npz", "x": "x_test", "y": "y_test"},
        })  # fmt: skip
    recipe = {
        "version": 1, "pool": {"base": "base.safetensors", "models": "models"}, "backbone": spec,
        "preprocess": {"size": 8, "mean": 0.5, "std": 0.5}, "tasks": tasks,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def main(argv: list[str]) -> int:
    """Measures the recipes; adds rows to the JSON, and leaves those of other labels there."""
    parser = argparse.ArgumentParser(prog="run.py end_to_end", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE")
    parser.add_argument("--clip8", action="store_true", help="runs that case too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label", default="now", help="of the rows (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="leaves the second run out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(options.threads)
    rows = json.loads(options.json.read_text())["results"] if options.json.exists() else []
    with tempfile.TemporaryDirectory() as work:
        cases = {path.parent.name if path.stem == "recipe" else path.stem: path
                 for path in options.recipes}  # fmt: skip
        if options.clip8:
            cases["clip8"] = write_clip8(Path(work, "clip8"))
        for case, path in cases.items():
            os.environ["MDFT_CACHE"] = str(Path(work, case, "cache"))
            for cache in ("empty",) if options.once else ("empty", "filled"):
                row = measure(path, case, options.set, Path(work, case))
                row |= {"label": options.label, "cache": cache, "threads": options.threads}
                key = [row[name] for name in ("case", "label", "cache")]
                rows = [r for r in rows if [r["case"], r["label"], r["cache"]] != key] + [row]
                words = f"python benchmarks/run.py {' '.join(argv[:1])} --label {options.label}"
                write_json(options.json, {**origin(words, torch.device("cpu")), "results": rows})
    return 0
