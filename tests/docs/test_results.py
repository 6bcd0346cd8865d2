# SPDX-License-Identifier: Apache-2.0
"""The results on the pages are those of the committed files, and no other number is a result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.pages import BLOCKS, PAGES, rewritten
from benchmarks.pages.blocks import BLOCK, NOTHING
from benchmarks.pages.results import RESULTS, ROOT

UNIT = r"(?:[mµn]?s|seconds?|minutes?|hours?|[KMGT]i?B(?:/s)?|%|per cent|×|x(?! ?\d)|times)"
MEASURED = re.compile(rf"(?<![\w.,/])\d[\d.,]*(?: (?:to|and|or) \d[\d.,]*)?[ \u00a0]?{UNIT}(?!\w)")
CODE = re.compile(r"^```\w+\n.*?^```|`[^`\n]*`", re.M | re.S)
DEFINED = {  # no measurement, so that no result holds it
    ("docs/data.md", "10 and 10 per cent"): "how EuroSAT is split",
    ("docs/recipes.md", "4GB"): "how a size is written",
    ("docs/recipes.md", "500MiB"): "how a size is written",
    ("docs/report.md", "95 %"): "the level of an interval",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def measured(page: str) -> list[str]:
    """Returns every number with a unit that stands outside of code and of blocks of results."""
    return [match[0] for match in MEASURED.finditer(CODE.sub("", BLOCK.sub("", page)))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_shows_the_committed_results(page: Path) -> None:
    assert rewritten(page) == page.read_text(), "run: python -m benchmarks.pages"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_number_on_a_page_but_from_a_committed_result(page: Path) -> None:
    allowed = {number for file, number in DEFINED if file == name(page)}
    assert set(measured(page.read_text())) == allowed, "benchmarks.pages makes a number, or it goes"


@pytest.mark.parametrize(
    "number",
    ["3 ms", "0.5 s", "22 to 24 GB/s", "1.2GB", "92 %", "1.5 x ours", "2.2 × as fast", "3 times"],
)
def test_a_number_by_hand_is_seen(number: str) -> None:
    block = "<!-- results:begin -->\n\n3 ms\n\n<!-- results:end -->"
    assert len(measured(f"It takes {number}.\n{block}\n`4GB`\n8 x 8 pixels\n")) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- results:none:begin -->\n<!-- results:none:end -->", "must name one of"),
        ("<!-- results:step:begin -->\n<!-- results:merge:end -->", "and be closed"),
        ("<!-- results:step:begin -->\n", "got an odd one"),
    ],
)
def test_a_wrong_marker_is_an_error(text: str, complaint: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        rewritten(page)


def test_results_of_made_up_files(tmp_path: Path) -> None:
    runs = [
        {
            "seed": seed, "preset": "default", "created": "2026-01-02T03:04:05", "commit": "c" * 40,
            "device": "a CPU", "threads": 2, "trainable": 4,
            "pool": {"tasks": [{"name": "a", "classes": 3}, {"name": "b", "classes": 5}]},
            "accuracy": {"pretrained": {"a": 0.5, "b": 0.25},
                         "specialized": {"a": 0.75 + seed / 100, "b": 0.5}},
            "intervals": {"average": {"difference": -0.01, "low": -0.03, "high": 0.015}},
            "comparisons": {"specialized-control": {"difference": 0.0, "low": -0.1, "high": 0.1}},
            "phases": [{"name": "stage 1", "seconds": 3.0 + seed, "peak_mb": None}],
        }
        for seed in (0, 2)
    ]  # fmt: skip
    contestants = {
        "mdft_fast": {"median_ms": 2.0, "share_of_copy": 0.9, "over_ours": 1.0},
        "matmul": {"median_ms": 5.0, "share_of_copy": 0.3, "over_ours": 2.4},
        "loop": {"median_ms": 1.9, "share_of_copy": 0.9, "over_ours": 0.95},
    }
    rates = {"decoding": 1234.5, "cached batches": 20_000.4, "encoder, forward": 99.5}
    packed = {"s": 6.54, "over_copy": 1.777, "written_mb": 1078.0, "anonymous_mb": 44.0}
    rows = {
        "kernels_cpu": {"op": "merge", "contestants": contestants},
        "data_cpu": {"threads": 1, "images": 2048, "batch": 128, "images_per_s": rates,
                     "batches_over_forward": 201.0, "load_average": 2.34},
        "pack_cpu": {"model_mb": 22.0, "ways": {"pack, int8": packed}},
    }  # fmt: skip
    made = {"real_pool": {"runs": runs, "command": "mdft run x"}}
    for name, row in rows.items():
        made[name] = {"date": "2026-01-02", "device": "a CPU", "busy": True,
                      "results": [{"case": "tiny", **row}]}  # fmt: skip
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    readme, page = BLOCKS["readme"](tmp_path), BLOCKS["results"](tmp_path)
    assert "| pre-trained (λ = 0) | 37.5 (37.5 to 37.5) |" in readme
    assert "| specialized models, stage 2 | 63.0 (62.5 to 63.5) |" in readme
    assert "faster than the fastest alternative in 0 of 1 cases" in readme
    assert "busy" in readme
    for line in (
        "−1.0 [−3.0, +1.5]; −1.0 [−3.0, +1.5]",
        "| a | 3 | 50.0 | 76.0 |",
        "| merge | tiny | 2 | 90 % | loop | 1.9 | 0.95 |",
        "| stage 1 | 4.0 |",
        "| tiny | 1 | 1,234 | 20,000 | 100 | 201 | 2.3 |",
        "| tiny | pack, int8 | 6.5 | 1.78 | 1,078 | 2.00 |",
        "2,048 files just written, batches of 128",
        "`mdft run x`",
    ):
        assert line in page
    assert BLOCKS["losses"](tmp_path) == "* merge, tiny: loop takes 0.95 of our time"
    assert {BLOCKS[name](tmp_path / "none") for name in ("readme", "results", "step")} == {NOTHING}
    assert len(BLOCKS["readme"](RESULTS).splitlines()) <= 25
