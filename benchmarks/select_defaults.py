# SPDX-License-Identifier: Apache-2.0
"""Chooses the default preset without a label.

    python benchmarks/select_defaults.py --json benchmarks/results/defaults.json RECIPE [RECIPE ...]

One measure judges every candidate, and no candidate's objective changes it: on samples that no
merge and no step sees, the cross-entropy of the teacher's softmax to the model's, unfiltered and
unweighted, as a share of what it is at task arithmetic. First come the starts as they are, then
what stage 1 makes of the best of them, then stage 2 from there, judged by equation (7) as a share
of what it is before. The lowest mean over recipes and seeds wins each time. Labelled samples are
not even opened. What the JSON holds is not measured again; with --keep, merges and λ stay too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))  # an installed mdft_fast wins

from benchmarks.harness import origin
from benchmarks.heldout import Nearness, merged_pool, nearness, of_pool
from benchmarks.markdown import mean
from benchmarks.selection_book import Book, Row
from mdft_fast import MetaModel, reference
from mdft_fast.app.opening import Built, build, specialize_config
from mdft_fast.app.recipe import Recipe
from mdft_fast.learning import (
    ConstructConfig,
    OptimizerConfig,
    Schedule,
    SpecializeConfig,
    TaughtTask,
    construct,
    specialize,
    teach,
)
from mdft_fast.methods import METHODS, merge_of
from mdft_fast.model import TASK_ARITHMETIC, Granularity
from mdft_fast.pool import Pool

# As a recipe's key `start` has them.
STARTS: dict[str, Any] = {
    "task arithmetic": TASK_ARITHMETIC,
    "wudi": "wudi",
    "calibrate": "calibrate",
    "calibrate, copies 1": {"method": "calibrate", "copies": 1},
    "calibrate, copies 2": {"method": "calibrate", "copies": 2},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "all samples, cross-entropy alone": {"filter": False, "reweight": "off", "use_entropy": False},
    "as written": {"filter": True, "reweight": "as_written", "use_entropy": True},
}
RATES = (0.001, 0.003, 0.01, 0.03)
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row")
# Where a first look at all rates on the demo's pool was enough: one of them.
ONE_RATE: dict[tuple[str, Granularity], Sequence[float]] = {
    ("all samples, cross-entropy alone", "row"): (0.01,),
    ("as written", "tensor"): (0.003,),
    ("as written", "row"): (),
}
NO_STAGE_1 = "no stage 1"
STEPS, BATCH = 100, 16
# The paper's range and beyond: from where stage 1 ends, 20 steps of 0.05 can be too few. This
# measure is best at λ = e_k, the individual model: what comes nearest to it in 20 steps wins.
SPECIALIZE_RATES = (0.05, 0.1, 0.2)
SCHEDULES: tuple[Schedule, ...] = ("constant",)
FIELDS = {  # of a candidate, by what is chosen
    "start": ("start",),
    "construct": ("start", "objective", "filter", "reweight", "use_entropy", "granularity", "lr",
                  "schedule"),
    "specialize": ("start", "lr", "schedule"),
}  # fmt: skip
MEASURE = (
    "held-out teacher cross-entropy as a share of what it is at task arithmetic (start, "
    "construct), and equation 7 as a share of what it was before (specialize); mean over pools and "
    "seeds; no labels"
)


class Subject:
    """One recipe's pool with one seed, of splits and draws.

    Args:
        name: of the pool, in the JSON.
        built: the recipe, opened.
        seed: the seed.
        keep: folder for what is expensive to make.
    """

    def __init__(self, name: str, built: Built, seed: int, keep: Path) -> None:
        self.name, self.built, self.seed, self._keep = name, built, seed, keep
        self.holdout = built.recipe.construct.holdout
        meta = MetaModel(built.backbone, built.pool, start=TASK_ARITHMETIC)
        self.taught = teach(meta, built.unlabelled, holdout=self.holdout, seed=seed)
        self.before = nearness(meta, self.taught)

    def start(self, start: str) -> MetaModel:
        """Returns the meta-model at a start, one λ a tensor."""
        return self._model(self._pool(start), "tensor")

    def learned(self, candidate: Row) -> tuple[MetaModel, list[TaughtTask]]:
        """Returns the meta-model at the λ that a candidate of stage 1 learns, and the tasks."""
        pool = self._pool(candidate["start"])
        meta = self._model(pool, candidate["granularity"])
        taught = of_pool(self.taught, pool)
        words = json.dumps({name: candidate[name] for name in FIELDS["construct"]})
        file = self._keep / f"{self._slug(words)}.pt"
        if file.is_file():
            meta.set_coefficients(torch.load(file, weights_only=True))
        else:
            construct(meta, taught, construct_config(candidate, self.holdout, self.seed))
            torch.save(meta.coefficients.detach(), file)
        return meta, taught

    def judged(self, meta: MetaModel) -> Row:
        """Returns a model's row."""
        near: Nearness = nearness(meta, self.taught)
        share = near.loss / self.before.loss
        return {"seed": self.seed, "before": self.before.loss, "after": near.loss,
                "share": share, "agreement": near.agreement}  # fmt: skip

    def _pool(self, start: str) -> Pool:
        entry = STARTS[start]
        if isinstance(entry, float):
            return self.built.pool
        fields = {"method": entry} if isinstance(entry, str) else dict(entry)
        merge = merge_of({fields.pop("method"): fields}, METHODS)
        folder = self._keep / self._slug(str(merge))
        if not folder.exists():
            tasks = self.built.unlabelled
            merged_pool(self.built, [merge], tasks, self.holdout, self.seed).save(folder, "fp32")
        return self.built.pool.with_start(Pool.open(folder))

    def _model(self, pool: Pool, granularity: Granularity) -> MetaModel:
        start = TASK_ARITHMETIC if pool.start is None else None
        return MetaModel(self.built.backbone, pool, granularity=granularity, start=start)

    def _slug(self, words: str) -> str:
        kept = "".join(c if c.isalnum() or c in ".-" else "_" for c in words)
        return f"{self.name}-{self.seed}-{kept}"


def construct_config(candidate: Row, holdout: float, seed: int) -> ConstructConfig:
    """Returns a candidate's configuration of stage 1."""
    change = {name: candidate[name] for name in ("filter", "reweight", "use_entropy")}
    optimizer = OptimizerConfig("adam", candidate["lr"], candidate["schedule"])
    return ConstructConfig(
        steps=STEPS, batch=BATCH, optimizer=optimizer, holdout=holdout, seed=seed, **change
    )


def construct_candidates(start: str) -> Iterator[Row]:
    """Gives each candidate of stage 1 from a start."""
    every = itertools.product(OBJECTIVES.items(), GRANULARITIES, RATES)
    for (name, change), granularity, lr in every:
        if lr not in ONE_RATE.get((name, granularity), RATES):
            continue
        yield {"start": start, "objective": name, **change, "granularity": granularity,
               "lr": lr, "schedule": "cosine"}  # fmt: skip


def choose_start(subjects: Sequence[Subject], book: Book) -> str:
    """Measures all starts as they are; returns the best one's name."""
    for subject, start in itertools.product(subjects, STARTS):
        if not book.known(subject.name, "start", {"start": start, "seed": subject.seed}):
            began = time.process_time()
            meta = subject.start(start)
            seconds = time.process_time() - began
            row = {"start": start, **subject.judged(meta), "cpu_s": seconds}
            book.add(subject.name, "start", row)
    return book.ranked("start")[0]["start"]


def choose_construct(subjects: Sequence[Subject], book: Book, start: str) -> Row:
    """Measures stage 1 from a start, and none; returns the best candidate that learns."""
    for subject in subjects:
        about = {"start": start, "seed": subject.seed}
        if not book.known(subject.name, "construct", {**about, "objective": NO_STAGE_1}):
            row = book.known(subject.name, "start", about)
            none = dict.fromkeys(FIELDS["construct"]) | {"objective": NO_STAGE_1}
            book.add(subject.name, "construct", {**none, **(row or {}), "cpu_s": 0.0})
        for candidate in construct_candidates(start):
            if not book.known(subject.name, "construct", candidate | {"seed": subject.seed}):
                began = time.process_time()
                meta, _ = subject.learned(candidate)
                seconds = time.process_time() - began
                row = candidate | subject.judged(meta) | {"cpu_s": seconds}
                book.add(subject.name, "construct", row)
    ranked = book.ranked("construct")
    return next(r for r in ranked if r["start"] == start and r["objective"] != NO_STAGE_1)


def choose_specialize(subjects: Sequence[Subject], book: Book, candidate: Row) -> None:
    """Measures stage 2 from what a candidate of stage 1 learns."""
    for subject in subjects:
        model: tuple[MetaModel, list[TaughtTask]] | None = None
        base = specialize_config(subject.built.recipe)
        for schedule, lr in itertools.product(SCHEDULES, SPECIALIZE_RATES):
            about = {"start": candidate["start"], "lr": lr, "schedule": schedule,
                     "seed": subject.seed}  # fmt: skip
            if not book.known(subject.name, "specialize", about):
                meta, taught = model = model or subject.learned(candidate)
                optimizer = OptimizerConfig("adam", lr, schedule)
                config = dataclasses.replace(base, optimizer=optimizer, seed=subject.seed)
                row = about | specialized(meta, taught, config)
                book.add(subject.name, "specialize", row)


def specialized(meta: MetaModel, taught: Sequence[TaughtTask], config: SpecializeConfig) -> Row:
    """Returns what stage 2 from the present λ makes of equation (7), mean over tasks."""
    start, began = meta.coefficients.detach().clone(), time.process_time()
    shares, agreements = [], []
    for task in taught:
        meta.set_coefficients(start)
        before, _ = alignment(meta, task)
        specialize(meta, task, config)
        after, agreement = alignment(meta, task)
        shares.append(after / before)
        agreements.append(agreement)
    meta.set_coefficients(start)
    seconds = time.process_time() - began
    return {"share": mean(shares), "agreement": mean(agreements), "cpu_s": seconds}


@torch.no_grad()
def alignment(meta: MetaModel, task: TaughtTask) -> tuple[float, float]:
    """Returns equation (7) on a task's held-out samples, and the agreement of classes there."""
    features: Tensor = meta.encode(task.batch(task.holdout))
    same = task.head(features).argmax(-1) == task.logits[task.holdout].argmax(-1)
    distance = reference.alignment(features, task.features[task.holdout])
    return float(distance), float(same.double().mean())


def main() -> None:
    """Judges all candidates on all recipes and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=Path, help="folder for merges and λ; none: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = [*map(str, options.seeds), *(path.name for path in options.recipes)]
    command = f"python benchmarks/select_defaults.py --seeds {' '.join(words)}"
    about = {"measure": MEASURE, **origin(command, torch.device("cpu")), "starts": STARTS}
    book = Book(options.json, FIELDS, about)
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        subjects = []
        for path in options.recipes:
            name = path.parent.name if path.stem == "recipe" else path.stem  # demo-v1/recipe.yaml
            built = build(Recipe.load(path))
            subjects += [Subject(name, built, seed, keep) for seed in options.seeds]
        best = choose_construct(subjects, book, choose_start(subjects, book))
        choose_specialize(subjects, book, best)


if __name__ == "__main__":
    main()
