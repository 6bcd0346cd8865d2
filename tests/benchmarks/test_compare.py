# SPDX-License-Identifier: Apache-2.0
"""Two measurements, compared: what is slower is seen, a slower machine is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.pages.results import RESULTS, read

SUITES = ("kernels_cpu", "step_cpu", "scaling_cpu", "data_cpu", "pack_cpu", "memory_cpu")
CASE = "ViT-L/14 fp32, int4 τ, forward and backward"


def slowed(content: Any, case: str, factor: float) -> Any:
    """Returns results in which our operator took ``factor`` times as long in one case."""
    changed = copy.deepcopy(content)
    (race,) = (row for row in changed["results"] if row["case"] == case)
    for name, one in race["contestants"].items():
        if name == "mdft_fast":
            one["median_ms"] *= factor
            one["iqr_ms"] = [factor * x for x in one["iqr_ms"]]
            one["share_of_copy"] /= factor
        else:
            one["over_ours"] /= factor
    return changed


@pytest.mark.parametrize("name", SUITES)
def test_a_result_is_as_fast_as_itself(name: str) -> None:
    content = read(RESULTS, name)
    same = compare.changes(content, content, 0.1)
    assert len(same) >= len([row for row in content["results"] if "limit_mb" not in row])
    assert all(one.ratio == one.low == one.high == 1 and not one.verdict for one in same.values())


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "slower"), (0.6, "faster"), (1.05, "")])
def test_a_change_beyond_noise_is_seen(factor: float, verdict: str) -> None:
    old = read(RESULTS, "kernels_cpu")
    compared = compare.changes(old, slowed(old, CASE, factor), 0.1)
    one = compared.pop(f"merge: {CASE}")
    assert one.ratio == pytest.approx(1 / factor)
    assert one.verdict == verdict
    assert not any(other.verdict for other in compared.values())


def test_noise_is_what_the_quartiles_say() -> None:
    old = read(RESULTS, "kernels_cpu")
    new = slowed(old, CASE, 1.5)
    for row in new["results"]:
        ours = row["contestants"]["mdft_fast"]
        ours["iqr_ms"] = [0.0, 9 * ours["median_ms"]]
    assert not any(one.verdict for one in compare.changes(old, new, 0.1).values())


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, case = read(RESULTS, "kernels_cpu"), "ViT-B/32 bf16, λ per task, fresh output"
    files = []
    for name, content in (("old", old), ("new", slowed(old, case, 2)), ("none", {"results": []})):
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps(content))
    assert compare.main(["compare", files[0], files[0]]) == 0
    assert compare.main(["compare", *files[:2]]) == 1
    assert f"| merge: {case} | 4.5 | 2.25 | 0.50 | 0.50 to 0.50 |" in capsys.readouterr().out
    assert compare.main(["compare", files[0], files[2]]) == 2
