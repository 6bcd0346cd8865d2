# SPDX-License-Identifier: Apache-2.0
"""The results on the pages are those of the committed files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import ModuleType

from tests.scripts import ROOT, script

README = ROOT / "README.md"


@functools.cache
def make_results() -> ModuleType:
    return script("docs/make_results.py")


def test_results_on_the_pages_are_the_committed_ones() -> None:
    make = make_results()
    for path, block in (
        (README, make.readme_block()),
        (ROOT / "docs/results.md", make.page_block()),
    ):
        text = path.read_text()
        assert make.replaced(text, block) == text, "run: python docs/make_results.py"


def test_results_of_made_up_files(tmp_path: Path) -> None:
    make = make_results()
    tasks = [{"name": "a", "classes": 3}, {"name": "b", "classes": 5}]
    runs = [
        {
            "seed": seed, "preset": "default", "created": "2026-01-02T03:04:05", "commit": "c" * 40,
            "device": "a CPU", "threads": 2, "trainable": 4, "pool": {"tasks": tasks},
            "accuracy": {
                "pretrained": {"a": 0.5, "b": 0.25},
                "specialized": {"a": 0.75 + seed / 100, "b": 0.5},
            },
            "intervals": {"average": {"difference": -0.01, "low": -0.03, "high": 0.015}},
            "comparisons": {
                "specialized-control": {"difference": 0.002, "low": -0.01, "high": 0.013}
            },
            "phases": [{"name": "stage 1", "seconds": 3.0 + seed, "peak_mb": None}],
        }
        for seed in (0, 2)
    ]  # fmt: skip
    (tmp_path / "real_pool.json").write_text(json.dumps({"runs": runs, "command": "mdft run x"}))
    contestants = {
        "mdft_fast": {"median_ms": 2.0, "share_of_copy": 0.9, "over_ours": 1.0},
        "matmul": {"median_ms": 5.0, "share_of_copy": 0.3, "over_ours": 2.4},
        "loop": {"median_ms": 1.9, "share_of_copy": 0.9, "over_ours": 0.95},
    }
    bench = {"date": "2026-01-02", "device": "a CPU", "busy": True, "results": [
        {"op": "merge", "case": "tiny", "contestants": contestants}]}  # fmt: skip
    (tmp_path / "kernels_cpu.json").write_text(json.dumps(bench))
    rates = {"decoding": 1234.5, "cached batches": 20_000.4, "encoder, forward": 99.5}
    row = {
        "case": "tiny", "threads": 1, "images": 2048, "batch": 128, "images_per_s": rates,
        "batches_over_forward": 201.0, "load_average": 2.34,
    }  # fmt: skip
    (tmp_path / "data_cpu.json").write_text(json.dumps(bench | {"results": [row]}))
    ways = {
        "pack, int8": {"s": 6.54, "over_copy": 1.777, "written_mb": 1078.0, "anonymous_mb": 44.0}
    }
    row = {"case": "tiny", "model_mb": 22.0, "ways": ways}
    (tmp_path / "pack_cpu.json").write_text(json.dumps(bench | {"results": [row]}))
    readme, page = make.readme_block(tmp_path), make.page_block(tmp_path)
    assert "| pre-trained (λ = 0) | 37.5 (37.5 to 37.5) |" in readme
    assert "| specialized models, stage 2 | 63.0 (62.5 to 63.5) |" in readme
    assert "−1.0 [−3.0, +1.5]; −1.0 [−3.0, +1.5]" in readme
    assert "faster than the best other contestant in 0 of 1 cases" in readme
    assert "busy" in readme
    assert "| a | 3 | 50.0 | 76.0 |" in page
    assert "| merge | tiny | 2 | 90 % | loop | 1.9 | 0.95 |" in page
    assert "| stage 1 | 4.0 |" in page
    assert "| tiny | 1 | 1,234 | 20,000 | 100 | 201 | 2.3 |" in page
    assert "| tiny | pack, int8 | 6.5 | 1.78 | 1,078 | 2.00 |" in page
    assert "2,048 files just written, batches of 128" in page
    assert "`mdft run x`" in page
    assert make.readme_block(tmp_path / "none") == "No result is committed yet."
