# SPDX-License-Identifier: Apache-2.0
"""The default preset is what the label-free selection chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.select_defaults import BATCH, FIELDS, NO_STAGE_1, STARTS, STEPS
from mdft_fast.app.recipe import PRESETS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def chosen() -> dict:
    return json.loads((BENCHMARKS / "results" / "defaults.json").read_text())


def best_of(rows: list) -> dict:
    return min(rows, key=lambda row: row["share"])


def test_default_start_is_the_argmin(chosen: dict) -> None:
    assert chosen["starts"] == STARTS
    assert PRESETS["default"]["start"] == STARTS[best_of(chosen["start"])["start"]]


def test_default_of_stage_1_is_the_argmin(chosen: dict) -> None:
    """Of what learns: a preset cannot leave stage 1 out."""
    start = best_of(chosen["start"])["start"]
    learned = [row for row in chosen["construct"] if row["objective"] != NO_STAGE_1]
    best = best_of([row for row in learned if row["start"] == start])
    construct = PRESETS["default"]["construct"]
    assert PRESETS["default"]["granularity"] == best["granularity"]
    assert construct["objective"]["entropy"] == best["use_entropy"]
    assert construct["objective"]["reweight"] == best["reweight"]
    assert construct["filter"]["enabled"] == best["filter"]
    assert construct["optimizer"]["lr"] == best["lr"]
    assert construct["optimizer"]["schedule"] == best["schedule"]
    assert (construct["steps"], construct["batch"]) == (STEPS, BATCH)


def test_default_of_stage_2_is_the_argmin(chosen: dict) -> None:
    start = best_of(chosen["start"])["start"]
    best = best_of([row for row in chosen["specialize"] if row["start"] == start])
    optimizer = PRESETS["default"]["specialize"]["optimizer"]
    assert (optimizer["lr"], optimizer["schedule"]) == (best["lr"], best["schedule"])


@pytest.mark.parametrize("stage", FIELDS)
def test_the_ranking_follows_from_the_runs(chosen: dict, stage: str) -> None:
    """Nobody edited the summary: it is the mean over the pools' rows."""
    rows = [row for pool in chosen["pools"].values() for row in pool[stage]]
    assert len(chosen[stage]) > 2
    for candidate in chosen[stage]:
        alike = [r for r in rows if all(r[key] == candidate[key] for key in FIELDS[stage])]
        for number in ("share", "agreement"):
            values = [row[number] for row in alike]
            assert candidate[number] == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("script", ["select_defaults", "selection_book", "heldout"])
def test_no_candidate_ever_saw_a_label(script: str) -> None:
    source = (BENCHMARKS / f"{script}.py").read_text()
    assert "evaluate" not in source
    assert "load_labelled" not in source
