# SPDX-License-Identifier: Apache-2.0
"""What `run.py methods` says of a model: the measure, the gap, what is kept, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_methods import Rows, gap, summary
from benchmarks.candidates import LEARNED, Candidate, Learning, candidates
from benchmarks.heldout import nearness
from benchmarks.pages import methods
from benchmarks.selection_book import Book
from mdft_fast import MetaModel
from mdft_fast.learning import holdout_cross_entropy, teach
from mdft_fast.methods import METHODS
from tests.world import World


def row(candidate: str, loss: float, accuracy: float | None, **others: Any) -> dict[str, Any]:
    return {"pool": "p", "candidate": candidate, "kind": "baseline", "loss": loss, "cpu_s": 1.0,
            "agreement": 1 - loss, "accuracy": accuracy, "peak_mb": 2.5, **others}  # fmt: skip


ROWS = [
    row("pre-trained", 0.9, 0.2, cpu_s=None, peak_mb=None),
    row("task_arithmetic", 0.7, 0.4),
    row("wudi", 0.6, 0.6),
    row("calibrate", 0.5, 0.55),
    row("individual models", 0.1, 0.8),
]


def test_the_measure_is_the_stages_own_and_agreement_counts(world: World) -> None:
    meta = MetaModel(world.backbone, world.pool)
    taught = teach(meta, world.tasks, holdout=0.25, seed=0)
    losses = holdout_cross_entropy(meta, taught)
    near = nearness(meta, taught)
    assert near.loss == pytest.approx(sum(losses.values()) / len(losses), rel=1e-6)
    same = [
        (meta(t.batch(t.holdout), t.name).argmax(-1) == t.logits[t.holdout].argmax(-1)).double()
        for t in taught
    ]
    assert near.agreement == pytest.approx(sum(float(s.mean()) for s in same) / len(same))
    assert nearness(meta, taught, own=True).agreement == 1


def test_the_gap_runs_from_task_arithmetic_to_the_individual_models() -> None:
    assert [gap(r, ROWS) for r in ROWS] == pytest.approx([-0.5, 0, 0.5, 0.375, 1])
    assert gap(row("x", 0.5, None), ROWS) is None
    assert gap(row("x", 0.5, 0.5), ROWS[1:3]) is None


def test_ranks_leave_the_individual_models_out() -> None:
    pytest.importorskip("scipy")
    about = summary(ROWS)["p"]
    assert about["models"] == 4
    assert about["spearman"] == pytest.approx({"loss": 0.8, "agreement": 0.8})


def test_a_page_of_made_up_rows() -> None:
    results = [r | {"gap": gap(r, ROWS)} for r in ROWS]
    page = methods.block({"pools": {"p": {"models": 4}}, "results": results})
    for text in ("| wudi | baseline | 0.6000 | 40.0 | 60.0 | 50.0 | 1.0 | 2 |",
                 "| pre-trained | baseline | 0.9000 | 10.0 | 20.0 | −50.0 | \u2013 |",
                 "| TSV-M | 84.2 | 91.5 |"):  # fmt: skip
        assert text in page


def test_candidates_are_every_merge_and_have_names_of_their_own() -> None:
    every = list(candidates())
    names = [candidate.name for candidate in every]
    assert len(set(names)) == len(names)
    assert {name for name, method in METHODS.items() if method.kind == "merge"} <= set(names)
    learned = Candidate(LEARNED, ({"calibrate": {"copies": 1}},), Learning("row", 0.2))
    assert learned.name == "λ per row from calibrate (copies 1) at 0.2"
    assert "samples=384" in learned.described()["methods"][0]


def test_rows_on_disk_are_not_measured_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json", "words")
    rows.add(ROWS[2])
    assert Rows(tmp_path / "rows.json", "words").holds({"pool": "p", "candidate": "wudi"})
    assert not rows.holds({"pool": "q", "candidate": "wudi"})


def test_a_selection_is_ranked_by_its_means_and_kept(tmp_path: Path) -> None:
    fields = {"start": ("start",)}
    book = Book(tmp_path / "book.json", fields, {})
    for seed, start, share in ((0, "a", 0.5), (1, "a", 0.7), (0, "b", 0.55), (1, "b", 0.6)):
        book.add("p", "start", {"start": start, "seed": seed, "share": share, "agreement": 0.5,
                                "cpu_s": 1.0})  # fmt: skip
    kept = Book(tmp_path / "book.json", fields, {})
    assert [(r["start"], r["share"]) for r in kept.ranked("start")] == [
        ("b", pytest.approx(0.575)),
        ("a", pytest.approx(0.6)),
    ]
    assert kept.known("p", "start", {"start": "a", "seed": 1})["share"] == 0.7
    assert kept.known("p", "start", {"start": "a", "seed": 2}) is None


def test_unseen_tasks_are_averaged_by_pool() -> None:
    rows = [
        {"pool": pool, "left_out": task, "accuracy": {"pre-trained": base, "calibrate": base / 2}}
        for pool, task, base in [("a", "x", 0.5), ("a", "y", 0.7), ("real_pool", "x", 0.2)]
    ]
    page = methods.unseen({"results": rows})
    assert "| a | 2 | 60.0 | 30.0 |" in page
    assert "| real pool | 1 | 20.0 | 10.0 |" in page
