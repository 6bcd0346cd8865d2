# SPDX-License-Identifier: Apache-2.0
"""The default preset is what the label-free selection chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdft_fast.app.recipe import PRESETS

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "defaults.json"


@pytest.fixture(scope="module")
def chosen() -> dict[str, list[dict[str, object]]]:
    return json.loads(RESULTS.read_text())


def test_default_of_stage_1_is_the_argmin(chosen: dict) -> None:
    best = min(chosen["construct"], key=lambda row: row["share"])
    construct = PRESETS["default"]["construct"]
    assert construct["objective"]["entropy"] == best["use_entropy"]
    assert construct["objective"]["reweight"] == best["reweight"]
    assert construct["filter"]["enabled"] == best["filter"]
    assert construct["optimizer"]["lr"] == best["lr"]
    assert construct["optimizer"]["schedule"] == best["schedule"]


def test_default_of_stage_2_is_the_argmin(chosen: dict) -> None:
    best = min(chosen["specialize"], key=lambda row: row["share"])
    optimizer = PRESETS["default"]["specialize"]["optimizer"]
    assert (optimizer["lr"], optimizer["schedule"]) == (best["lr"], best["schedule"])


def test_the_ranking_follows_from_the_runs(chosen: dict) -> None:
    """Nobody edited the summary: it is the mean over the pools' rows."""
    for stage, keys in (("construct", ("objective", "lr")), ("specialize", ("lr", "schedule"))):
        rows = [row for pool in chosen["pools"].values() for row in pool[stage]]
        assert len(chosen[stage]) > 2
        for candidate in chosen[stage]:
            shares = [r["share"] for r in rows if all(r[k] == candidate[k] for k in keys)]
            assert candidate["share"] == pytest.approx(sum(shares) / len(shares))


def test_no_candidate_ever_saw_a_label() -> None:
    source = (RESULTS.parent.parent / "select_defaults.py").read_text()
    assert "evaluate" not in source
    assert "load_labelled" not in source
