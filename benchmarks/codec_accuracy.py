# SPDX-License-Identifier: Apache-2.0
"""What a codec of the task vectors costs in accuracy: individual models, stage 1, stage 2.

    python benchmarks/codec_accuracy.py RECIPE --codecs int8 int4 --seeds 0 1 2 --json FILE

Labels are opened when λ is learned. The agreement of the packed pool's own models with the
originals is over test images, of which labels are not used: the share with the same answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # an installed mdft_fast wins

from benchmarks.harness import origin
from benchmarks.markdown import mean
from mdft_fast import MetaModel, Pool
from mdft_fast.app.opening import Built, build, construct_config, specialize_config
from mdft_fast.app.recipe import Recipe
from mdft_fast.evaluation import TestSet, evaluate, load_test_sets
from mdft_fast.files import write_json
from mdft_fast.learning import construct, specialize, teach


@torch.no_grad()
def answers(meta: MetaModel, test: TestSet) -> Tensor:
    """Returns the class that a task's own model names for each test image."""
    named = []
    with meta.using(meta.individual(test.task.name)):
        for rows in torch.arange(len(test.samples)).split(128):
            images = test.samples.batch(rows, meta.coefficients.device)
            named.append(meta(images, test.task.name).argmax(-1))
    return torch.cat(named)


def accuracy_of_each(meta: MetaModel, tests: Sequence[TestSet], at: Mapping[str, Tensor]) -> float:
    """Returns the mean over tasks of the accuracy that each task's own λ has on it."""
    accuracies = []
    for test in tests:
        with meta.using(at[test.task.name]):
            accuracies.append(evaluate(meta, [test]).average)
    return mean(accuracies)


def measure(
    built: Built, original: Mapping[str, Tensor], tests: Sequence[TestSet], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yields a row a seed."""
    recipe, names = built.recipe, built.pool.names
    for seed in seeds:
        began = time.perf_counter()
        first = dataclasses.replace(construct_config(recipe), seed=seed)
        second = dataclasses.replace(specialize_config(recipe), seed=seed)
        meta = built.meta_model()
        agreed = [float((answers(meta, t) == original[t.task.name]).double().mean()) for t in tests]
        individual = accuracy_of_each(meta, tests, {name: meta.individual(name) for name in names})
        taught = teach(meta, built.unlabelled, holdout=first.holdout, seed=seed)
        learned = construct(meta, taught, first).coefficients
        special = {}
        for task in taught:
            meta.set_coefficients(learned)
            special[task.name] = specialize(meta, task, second).coefficients
        meta.set_coefficients(learned)
        yield {
            "codec": built.pool.codec,
            "seed": seed,
            "agreement": mean(agreed),
            "individual": individual,
            "meta": evaluate(meta, tests).average,
            "specialized": accuracy_of_each(meta, tests, special),
            "vectors_mb": built.pool.vectors.bytes / 1e6,
            "seconds": time.perf_counter() - began,
        }


def main() -> None:
    """Measures every codec and writes the JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--codecs", nargs="+", default=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    recipe = Recipe.load(options.recipe)
    exact = build(recipe)
    tests = load_test_sets(exact.tasks, exact.pool.preprocess)
    meta = exact.meta_model()
    original = {test.task.name: answers(meta, test) for test in tests}
    command = "python benchmarks/codec_accuracy.py "
    command += f"{options.recipe.name} --codecs {' '.join(options.codecs)}"
    rows = []
    for codec in options.codecs:
        pool: Pool = exact.pool.encode(codec)
        for row in measure(dataclasses.replace(exact, pool=pool), original, tests, options.seeds):
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            write_json(options.json, {
                **origin(command, torch.device("cpu")), "preset": recipe.preset, "rows": rows,
            })  # fmt: skip


if __name__ == "__main__":
    main()
