# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, compare answers, and know their tables. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.compare import changes
from benchmarks.harness import OURS, Busy, Case, agree, orders, race
from benchmarks.machine import Machine
from benchmarks.shapes import TABLES, parameters
from benchmarks.suites import SUITES
from tests.conftest import ROOT

X = torch.arange(10.0)
Call = Callable[[], torch.Tensor]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(torch.device("cpu"), copy_bytes=1 << 16)


def fails() -> torch.Tensor:
    raise RuntimeError("no compiler")


def make_case(rival: Call, name: str = "rival", **changes: Any) -> Case:
    case = Case("double", "ten", lambda: X * 2, {name: rival}, lambda a, b: agree(a, b, 1e-6), 80)
    return dataclasses.replace(case, **changes)


def held(machine: Machine, case: Case, rounds: int = 1) -> dict[str, Any]:
    return race(case, machine, rounds=rounds, allow_busy=True).summary()


def test_race_times_who_answers_alike(machine: Machine) -> None:
    result = held(machine, make_case(lambda: X + X), rounds=3)
    assert set(result["contestants"]) == {OURS, "rival"}
    assert all(one["median_ms"] > 0 for one in result["contestants"].values())
    assert result["contestants"][OURS]["over_ours"] == 1
    assert result["copy_gb_per_s"] > 0
    json.dumps(result)


def test_each_round_begins_with_another() -> None:
    assert list(orders("abc", 4)) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], [*"abc"]]


@pytest.mark.parametrize("wrong", [lambda: X * 2.001, lambda: X[1:] * 2, lambda: X * torch.nan])
def test_race_refuses_a_wrong_answer(machine: Machine, wrong: Call) -> None:
    with pytest.raises(AssertionError, match="double, ten: rival"):
        held(machine, make_case(wrong))


def test_race_compares_with_a_copy(machine: Machine) -> None:
    out = torch.empty(10)  # both write here: the later must not be compared with itself
    case = make_case(lambda: torch.mul(X, 3, out=out), ours=lambda: torch.mul(X, 2, out=out))
    with pytest.raises(AssertionError, match="differ"):
        held(machine, case)


@pytest.mark.parametrize(
    ("case", "name", "why"),
    [
        (make_case(fails, "torch.compile"), "torch.compile", "RuntimeError: no compiler"),
        (make_case(lambda: X + X, left_out={"huge": "needs 99 GB"}), "huge", "needs 99 GB"),
        (make_case(lambda: torch.empty(1 << 60), "greedy"), "greedy", "can't allocate memory"),
    ],
    ids=["only a compiled rival may fail", "left out", "does not fit"],
)
def test_who_does_not_run_is_named(machine: Machine, case: Case, name: str, why: str) -> None:
    missing = held(machine, case)["does_not_work_here"]
    assert list(missing) == [name]
    assert why in missing[name]


def test_a_failing_rival_is_an_error(machine: Machine) -> None:
    with pytest.raises(RuntimeError, match="no compiler"):
        held(machine, make_case(fails))


def test_a_busy_machine_is_refused_or_recorded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    case = make_case(lambda: X + X)
    with pytest.raises(Busy, match=r"load average 99\.0"):
        race(case, machine, rounds=1)
    assert held(machine, case)["busy"]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not race(case, machine, rounds=1).busy


def test_tables_are_those_of_the_real_models() -> None:
    assert (parameters(TABLES["ViT-B/32"]), len(TABLES["ViT-B/32"])) == (87_849_216, 152)
    assert (parameters(TABLES["ViT-L/14"]), len(TABLES["ViT-L/14"])) == (303_966_208, 296)


def test_a_table_is_open_clips_own() -> None:
    transformer = pytest.importorskip("open_clip").transformer
    with torch.device("meta"):
        tower = transformer.VisionTransformer(224, 32, 768, 12, 12, 4.0, output_dim=512)
    assert {n: tuple(p.shape) for n, p in tower.named_parameters()} == TABLES["ViT-B/32"]


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_run_writes_what_it_measured(suite: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--quick", "--allow-busy", "--no-compile", "--threads", "1", "--json", str(file)]
    command = [sys.executable, "benchmarks/run.py", suite, *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    report = json.loads(file.read_text())
    assert report["kernels"]["cpu"] in ("avx2", "portable")
    assert report["results"]
    assert report.keys() >= {
        "command", "commit", "device", "threads", "versions", "load_average", "busy"
    }  # fmt: skip
    assert str(ROOT) not in file.read_text()
    assert {result["suite"] for result in report["results"]} == {suite}
    assert not {c.verdict for c in changes(report, report, 0.1).values()} - {""}
    if suite == "kernels":
        ops = {"merge", "merge_dots", "debiased_entropy"}
        assert {result["op"] for result in report["results"]} == ops


@pytest.mark.slow
def test_pytest_benchmark_keeps_our_turns(tmp_path: Path) -> None:
    options = ["--table", "tiny", "--allow-busy", "-p", "no:cacheprovider"]
    chosen = ["benchmarks/bench_merge.py", "-k", "backward and fp32"]
    command = [sys.executable, "-m", "pytest", *chosen, *options]
    file = tmp_path / "out.json"
    subprocess.run([*command, f"--benchmark-json={file}"], cwd=ROOT, check=True,
                   capture_output=True, timeout=280)  # fmt: skip
    (kept,) = json.loads(file.read_text())["benchmarks"]
    ours = kept["extra_info"]["contestants"][OURS]
    assert 1e3 * kept["stats"]["median"] == pytest.approx(ours["median_ms"], rel=1e-3)
    assert kept["stats"]["rounds"] == kept["extra_info"]["rounds"] == 5
