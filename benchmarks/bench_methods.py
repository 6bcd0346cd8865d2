# SPDX-License-Identifier: Apache-2.0
"""What each method makes of a pool, and what that takes: time, memory, accuracy, held-out loss.

    python benchmarks/run.py methods RECIPE [RECIPE ...] --json benchmarks/results/methods.json

Methods see the unlabelled samples that are not held out, one thread does all the work, and time is
the process's own: what else the machine does hardly counts. Memory is the resident set's peak
beyond what was there, the pool and the samples. Labels are read for accuracy alone. What the JSON
holds already is not measured again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.candidates import (
    BASELINE,
    INDIVIDUAL,
    PRETRAINED,
    TASK_ARITHMETIC,
    Candidate,
    candidates,
)
from benchmarks.harness import origin
from benchmarks.heldout import Nearness, merged_pool, nearness, of_pool
from benchmarks.machine import Machine
from benchmarks.markdown import mean
from benchmarks.paper.analysis import spearman
from mdft_fast import MetaModel
from mdft_fast.app.opening import build, load_data
from mdft_fast.app.recipe import Recipe
from mdft_fast.evaluation import evaluate, load_test_sets
from mdft_fast.files import write_json
from mdft_fast.learning import construct, teach
from mdft_fast.methods import METHODS
from mdft_fast.model import HOLDOUT
from mdft_fast.pool import Pool

T = TypeVar("T")
CPU = torch.device("cpu")


def pool_name(recipe: Path) -> str:
    """Returns what results call a recipe's pool: the folder of a ``recipe.yaml``, else the file."""
    return recipe.parent.name if recipe.stem == "recipe" else recipe.stem


class PoolBench:
    """One recipe's pool, opened once, with its teachers' answers and its test sets."""

    def __init__(self, path: Path, holdout: float, seed: int) -> None:
        self.name, self.holdout, self.seed = pool_name(path), holdout, seed
        self.built = build(Recipe.load(path))
        self.tasks = load_data(self.built).tasks
        self.meta = MetaModel(self.built.backbone, self.built.pool, start=0.0)
        self.taught = teach(self.meta, self.tasks, holdout=holdout, seed=seed)
        self.tests = load_test_sets(self.built.tasks, self.built.pool.preprocess)
        self.machine = Machine(CPU, copy_bytes=1 << 20)
        self._last: tuple[Any, Pool, dict[str, float]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a row depends on beside its candidate."""
        return {"holdout": self.holdout, "seed": self.seed, "threads": torch.get_num_threads()}

    def baselines(self) -> dict[str, dict[str, Any]]:
        """Returns the rows of the base and of the tasks' own models."""
        rows = {}
        with self.meta.using(0.0):
            rows[PRETRAINED] = self._judged(self.meta)
        by_task = {}
        for test in self.tests:
            with self.meta.using(self.meta.individual(test.task.name)):
                by_task |= evaluate(self.meta, [test]).accuracy
        near = nearness(self.meta, self.taught, own=True)
        rows[INDIVIDUAL] = _row(near, by_task)
        return rows

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """Makes a candidate's model; returns what it took and what it is worth."""
        merged, cost = self._merged(candidate)
        if candidate.learning is None:
            assert merged is not None
            return cost | self._judged(MetaModel(self.built.backbone, merged, start=1.0))
        pool = self.built.pool if merged is None else self.built.pool.with_start(merged)
        meta = MetaModel(self.built.backbone, pool, granularity=candidate.learning.granularity)
        taught = of_pool(self.taught, pool)
        config = candidate.learning.config(self.holdout, self.seed)
        _, learning = self._timed(lambda: construct(meta, taught, config))
        cost = {
            "cpu_s": cost["cpu_s"] + learning["cpu_s"],
            "peak_mb": max(cost["peak_mb"], learning["peak_mb"]),
        }
        return cost | {"numbers": meta.coefficients.numel()} | self._judged(meta)

    def _merged(self, candidate: Candidate) -> tuple[Pool | None, dict[str, float]]:
        """Returns the pool of one vector; the last one is kept, since λ is learned from it next."""
        if not candidate.methods:
            return None, {"cpu_s": 0.0, "peak_mb": 0.0}
        if self._last is None or self._last[0] != candidate.methods:
            pool, cost = self._timed(
                lambda: merged_pool(
                    self.built, candidate.steps, self.tasks, self.holdout, self.seed
                )
            )
            self._last = candidate.methods, pool, cost
        return self._last[1:]

    def _timed(self, call: Callable[[], T]) -> tuple[T, dict[str, float]]:
        def timed() -> tuple[T, float]:
            began = time.process_time()
            answer = call()
            return answer, time.process_time() - began

        (answer, seconds), peak = self.machine.peak(timed)
        return answer, {"cpu_s": seconds, "peak_mb": peak or 0.0}

    def _judged(self, meta: MetaModel) -> dict[str, Any]:
        near = nearness(meta, self.taught)
        return _row(near, evaluate(meta, self.tests).accuracy if self.tests else {})


def _row(near: Nearness, accuracy: Mapping[str, float]) -> dict[str, Any]:
    average = mean(accuracy) if accuracy else None
    return {**near._asdict(), "accuracy": average, "by_task": dict(accuracy)}


class Rows:
    """The results so far, on disk after each one.

    Args:
        path: of the JSON; what it holds already stays.
        words: the command, for the record.
    """

    def __init__(self, path: Path, words: str) -> None:
        self._path, self._words = path, words
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.rows: list[dict[str, Any]] = held.get("results", [])

    def holds(self, about: Mapping[str, Any]) -> bool:
        """Tells whether a row with these values was measured."""
        return any(all(row[key] == about[key] for key in about) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and writes all."""
        self.rows.append(row)
        print(line(row), flush=True)
        ranked = sorted(self.rows, key=lambda one: (one["pool"], one["loss"]))
        write_json(self._path, {
            **origin(self._words, CPU),
            "pools": summary(ranked),
            "results": [row | {"gap": gap(row, ranked)} for row in ranked],
        })  # fmt: skip


def gap(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the share of the way from task arithmetic to the individual models, in accuracy."""
    accuracy = {r["candidate"]: r["accuracy"] for r in rows if r["pool"] == row["pool"]}
    ends = accuracy.get(TASK_ARITHMETIC), accuracy.get(INDIVIDUAL)
    if row["accuracy"] is None or None in ends:
        return None
    return (row["accuracy"] - ends[0]) / (ends[1] - ends[0])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns for each pool how well held-out numbers rank accuracy: Spearman's rho.

    The individual models are left out: they are not one model.
    """
    content = {}
    for name in dict.fromkeys(row["pool"] for row in rows):
        of_pool = [r for r in rows if r["pool"] == name and r["candidate"] != INDIVIDUAL]
        of_pool = [r for r in of_pool if r["accuracy"] is not None]
        loss, agreement, accuracy = (
            torch.tensor([r[key] for r in of_pool]) for key in ("loss", "agreement", "accuracy")
        )
        content[name] = {"models": len(of_pool)} | (
            {"spearman": {"loss": spearman(-loss, accuracy),
                          "agreement": spearman(agreement, accuracy)}}
            if len(of_pool) > 2
            else {}
        )  # fmt: skip
    return content


def line(row: Mapping[str, Any]) -> str:
    """Returns one line."""
    cost = "" if row["cpu_s"] is None else f"{row['cpu_s']:8.1f} s {row['peak_mb']:8,.0f} MB"
    accuracy = "" if row["accuracy"] is None else f"accuracy {row['accuracy']:.4f}"
    return (
        f"{row['pool']:10} {row['candidate']:44} {cost:22} loss {row['loss']:.4f} "
        f"agreement {row['agreement']:.4f} {accuracy}"
    )


def run(bench: PoolBench, chosen: Sequence[Candidate], rows: Rows) -> None:
    """Measures what of a pool is not measured yet."""
    about = {"pool": bench.name, "settings": bench.settings}
    if not rows.holds(about | {"candidate": PRETRAINED}):
        for name, row in bench.baselines().items():
            words = {"candidate": name, "kind": BASELINE, "methods": [], "learn": None}
            rows.add(about | words | {"cpu_s": None, "peak_mb": None} | row)
    for candidate in chosen:
        if not rows.holds(about | candidate.described()):
            rows.add(about | candidate.described() | bench.measure(candidate))


def main(argv: list[str]) -> int:
    """Measures the candidates on all recipes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.py methods", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--json", type=Path, required=True, help="results; its rows are kept")
    parser.add_argument("--methods", help="a,b: candidates with one of these methods alone")
    parser.add_argument("--holdout", type=float, default=HOLDOUT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(1)
    names = set((options.methods or "").split(",")) - {""}
    if unknown := sorted(names - set(METHODS)):
        parser.error(f"--methods must be of {list(METHODS)}, got {unknown}")
    chosen = [c for c in candidates() if not names or c.kind == BASELINE or c.uses(names)]
    recipes = " ".join(path.name for path in options.recipes)
    rows = Rows(options.json, f"python benchmarks/run.py methods {recipes}")
    for path in options.recipes:
        run(PoolBench(path, options.holdout, options.seed), chosen, rows)
    return 0
