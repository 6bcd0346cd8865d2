# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, compare answers, and know their tables. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import OURS, Busy, Case, Machine, agree, race
from benchmarks.shapes import TABLES, parameters
from tests.conftest import ROOT

X = torch.arange(10.0)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(torch.device("cpu"), copy_bytes=1 << 16)


def make_case(rival: Callable[[], torch.Tensor], name: str = "rival") -> Case:
    return Case("double", "ten", lambda: X * 2, {name: rival}, lambda a, b: agree(a, b, 1e-6), 80)


def test_race_times_who_answers_alike(machine: Machine) -> None:
    result = race(make_case(lambda: X + X), machine, rounds=3, allow_busy=True)
    assert set(result["contestants"]) == {OURS, "rival"}
    assert all(one["median_ms"] > 0 for one in result["contestants"].values())
    assert result["contestants"][OURS]["over_ours"] == 1
    assert result["copy_gb_per_s"] > 0
    json.dumps(result)


@pytest.mark.parametrize("wrong", [lambda: X * 2.001, lambda: X[1:] * 2, lambda: X * torch.nan])
def test_race_refuses_a_wrong_answer(machine: Machine, wrong: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(AssertionError, match="double, ten: rival"):
        race(make_case(wrong), machine, rounds=1, allow_busy=True)


def test_race_compares_with_a_copy(machine: Machine) -> None:
    out = torch.empty(10)  # both write here: the later must not be compared with itself

    def ours() -> torch.Tensor:
        return torch.mul(X, 2, out=out)

    case = Case("double", "ten", ours, {"rival": lambda: torch.mul(X, 3, out=out)},
                lambda a, b: agree(a, b, 1e-6))  # fmt: skip
    with pytest.raises(AssertionError, match="differ"):
        race(case, machine, rounds=1, allow_busy=True)


def test_only_a_compiled_rival_may_fail(machine: Machine) -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("no compiler")

    result = race(make_case(fails, "torch.compile"), machine, rounds=1, allow_busy=True)
    assert result["does_not_work_here"] == {"torch.compile": "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError, match="no compiler"):
        race(make_case(fails), machine, rounds=1, allow_busy=True)


def test_who_is_left_out_is_named(machine: Machine) -> None:
    case = dataclasses.replace(make_case(lambda: X + X), left_out={"huge": "needs 99 GB"})
    result = race(case, machine, rounds=1, allow_busy=True)
    assert result["does_not_work_here"] == {"huge": "needs 99 GB"}


def test_who_does_not_fit_is_named(machine: Machine) -> None:
    def greedy() -> torch.Tensor:
        return torch.empty(1 << 60)

    result = race(make_case(greedy, "greedy"), machine, rounds=1, allow_busy=True)
    assert "can't allocate memory" in result["does_not_work_here"]["greedy"]


def test_a_busy_machine_is_refused_or_recorded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    case = make_case(lambda: X + X)
    with pytest.raises(Busy, match=r"load average 99\.0"):
        race(case, machine, rounds=1)
    assert race(case, machine, rounds=1, allow_busy=True)["busy"]
    monkeypatch.setattr(harness.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not race(case, machine, rounds=1)["busy"]


def test_tables_are_those_of_the_real_models() -> None:
    assert (parameters(TABLES["ViT-B/32"]), len(TABLES["ViT-B/32"])) == (87_849_216, 152)
    assert (parameters(TABLES["ViT-L/14"]), len(TABLES["ViT-L/14"])) == (303_966_208, 296)


def test_a_table_is_open_clips_own() -> None:
    transformer = pytest.importorskip("open_clip").transformer
    with torch.device("meta"):
        tower = transformer.VisionTransformer(224, 32, 768, 12, 12, 4.0, output_dim=512)
    assert {n: tuple(p.shape) for n, p in tower.named_parameters()} == TABLES["ViT-B/32"]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["kernels", "step", "data", "pack"])
def test_run_writes_what_it_measured(suite: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ["--quick", "--allow-busy", "--no-compile", "--threads", "1", "--json", str(file)]
    command = [sys.executable, "benchmarks/run.py", suite, *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    report = json.loads(file.read_text())
    assert report["kernels"]["cpu"] in ("avx2", "portable")
    assert report["results"]
    assert {"command", "commit", "device", "threads", "versions", "load_average", "busy"} <= set(
        report
    )
    assert str(ROOT) not in file.read_text()
    assert {result["suite"] for result in report["results"]} == {suite}
    if suite == "kernels":
        ops = {"merge", "merge_dots", "debiased_entropy"}
        assert {result["op"] for result in report["results"]} == ops
