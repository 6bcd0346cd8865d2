# SPDX-License-Identifier: Apache-2.0
"""What a merge leaves of the base's abilities: each task in turn is left out, and then asked for.

    python benchmarks/run.py unseen RECIPE [RECIPE ...] --json benchmarks/results/unseen.json

The task's own head stands on the base's features as on the merged model's; neither its model nor
its samples took part. Labels are read for accuracy alone. What the JSON holds already is not
measured again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_methods import pool_name
from benchmarks.candidates import PRETRAINED
from benchmarks.harness import origin
from benchmarks.heldout import merged_pool
from mdft_fast import MetaModel
from mdft_fast.app.opening import build, load_data
from mdft_fast.app.recipe import Recipe
from mdft_fast.evaluation import evaluate, load_test_sets
from mdft_fast.files import write_json
from mdft_fast.methods import METHODS, method_of
from mdft_fast.model import HOLDOUT

MERGES: tuple[Any, ...] = ("task_arithmetic", "wudi", "calibrate")


def accuracies(recipe: Recipe, left_out: str, seed: int) -> dict[str, float]:
    """Returns the accuracy on a task of the base, and of what merges of the other tasks give.

    Args:
        recipe: of all tasks.
        left_out: one of them.
        seed: of the split of the others' samples.
    """
    asked = [task for task in recipe.tasks if task.name == left_out]
    others = [task for task in recipe.tasks if task.name != left_out]
    built = build(recipe.model_copy(update={"tasks": others}))
    unseen = build(recipe.model_copy(update={"tasks": asked})).tasks
    tests = load_test_sets(unseen, built.pool.preprocess)
    tasks = load_data(built).tasks
    pools = {
        merge: merged_pool(built, [method_of(merge, METHODS)], tasks, HOLDOUT, seed)
        for merge in MERGES
    }
    models = {PRETRAINED: MetaModel(built.backbone, built.pool, start=0.0)} | {
        merge: MetaModel(built.backbone, pool, start=1.0) for merge, pool in pools.items()
    }
    return {name: evaluate(model, tests).accuracy[left_out] for name, model in models.items()}


def main(argv: list[str]) -> int:
    """Measures all tasks of all recipes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.py unseen", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--json", type=Path, required=True, help="results; its rows are kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(1)
    words = "python benchmarks/run.py unseen " + " ".join(path.name for path in options.recipes)
    rows: list[Mapping[str, Any]] = []
    if options.json.exists():
        rows = json.loads(options.json.read_text())["results"]
    for path in options.recipes:
        recipe = Recipe.load(path)
        for task in recipe.tasks:
            key = {"pool": pool_name(path), "left_out": task.name, "seed": options.seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(key | {"accuracy": accuracies(recipe, task.name, options.seed)})
            print(rows[-1], flush=True)
            write_json(options.json, {**origin(words, torch.device("cpu")), "results": rows})
    return 0
