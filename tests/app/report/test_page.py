# SPDX-License-Identifier: Apache-2.0
"""The page as text: every part, nothing from elsewhere, and strangers' names as mere text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from mdft_fast.app.report import page
from mdft_fast.app.report.accuracies import wilson
from mdft_fast.errors import MdftError
from tests.app.report.conftest import TASKS, make_metrics

SECTIONS = ["verdict", "accuracy", "stage1", "filter", "stage2", "confusion", "cost", "origin"]
VOID = {"meta", "col", "br", "hr", "link", "img", "input"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """Collects elements, and complains where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} closed, none open"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_part_is_there_and_the_verdict_comes_first(result: Any) -> None:
    read = Reader(page(result, make_metrics()))
    assert [a["id"] for a in read.all("section")] == SECTIONS
    links = {a["href"] for a in read.all("a")}
    assert {link for link in links if "word-" not in str(link)} == {f"#{s}" for s in SECTIONS[1:]}
    text = " ".join(read.text.split())
    assert text.index("better than the individual models") < text.index("Top-1 in per cent")
    assert "1,216 numbers were learned: 8 task vectors × 152 columns of λ, in 100 steps." in text
    assert "omniglot242 21 of 384 kept" in text
    assert "samples were drawn from those that pass the filter" in text
    assert "A step of stage 1: 480.0 ms in the median, 266 samples a second." in text
    assert "ab" * 32 in text
    assert "version: 1 preset: default" in text
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert links <= {f"#{name}" for name in ids}


def test_it_is_small_and_refers_to_nothing_outside(result: Any) -> None:
    text = page(result, 10 * make_metrics())
    assert len(text.encode()) < 1_500_000
    read = Reader(text)
    for name, attributes in read.elements:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form", "use")
        assert not attributes.keys() & {"src", "srcset", "style", "action", "xlink:href"}
        assert not [key for key in attributes if key.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_policy_allows_the_pages_own_code_alone(result: Any) -> None:
    text = page(result, make_metrics())
    (policy,) = [
        a["content"] for a in Reader(text).all("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for tag, key in (("script", "script-src"), ("style", "style-src")):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert rules[key] == f"'sha256-{digest}'"


def rename(result: Any, metrics: list[dict[str, Any]], old: str, new: str) -> tuple[Any, Any]:
    """Gives a task another name everywhere."""
    quoted = json.dumps(new)
    texts = [json.dumps(part).replace(f'"{old}"', quoted) for part in (result, metrics)]
    return json.loads(texts[0]), json.loads(texts[1])


def test_strangers_names_stay_text(result: Any) -> None:
    plain = Reader(page(result, make_metrics()))
    result, metrics = rename(result, make_metrics(), "mnist", EVIL)
    result["confusion"][EVIL]["classes"] = [f"{EVIL}{i}" for i in range(10)]
    result["columns"] = [f"{name}{EVIL}" for name in result["columns"]]
    result["pool"]["left_out"] = {EVIL: EVIL}
    result["versions"][EVIL] = EVIL
    result["kernels"] = {EVIL: EVIL}
    result["warnings"] = [EVIL]
    result.update(device=EVIL, preset=EVIL, commit=EVIL, created=EVIL, recipe=EVIL)
    text = page(result, metrics)
    read = Reader(text)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert len(read.all("script")) == 1
    assert {name for name, _ in read.elements} <= {name for name, _ in plain.elements} | {"div"}
    assert {k for _, a in read.elements for k in a} == {k for _, a in plain.elements for k in a} | {
        "role"
    }
    assert read.text.count(EVIL) > 30


def test_tables_name_their_rows_and_columns(result: Any) -> None:
    text = page(result, make_metrics())
    tables = re.findall(r"<table[^>]*>.*?</table>", text, re.S)
    assert len(tables) > 15
    for table in tables:
        if 'aria-hidden="true"' in table.partition(">")[0]:
            continue
        heads = [a for name, a in Reader(table).elements if name == "th"]
        assert {a.get("scope") for a in heads} <= {"row", "col", "colgroup", None}
        assert [a for a in heads if a.get("scope") == "row"]
    for drawing in Reader(text).all("svg"):
        named = drawing.get("aria-label") or drawing.get("aria-hidden")
        assert named or "data-tip" in drawing or drawing.get("width") == "100%"


def test_the_heat_map_holds_every_value(result: Any) -> None:
    result["coefficients"]["construct"][1][2:4] = [-1.25, -0.0001]
    text = page(result, [])
    (table,) = re.findall(r"<table class=\"heat grid\".*?</table>", text, re.S)
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert heads == ["task", *result["columns"]]
    assert len(re.findall(r"<td class=\"d\d+", table)) == 8 * 152
    assert ">0.000</td>" in table, "and not minus zero"
    assert '<td class="d0">−1.250</td>' in table, "the farthest value has the scale's end"
    assert "Without color: 0.3, where every λ started." in text
    result["coefficients"]["start"] = [[0.1 * k] * 152 for k in range(8)]
    assert "Without color: 0, no part of that task vector." in page(result, [])


def test_intervals_of_shares() -> None:
    found = wilson(0.8, 400)
    assert found.low == pytest.approx(0.758, abs=5e-4)  # by hand, Newcombe's formula 3
    assert found.high == pytest.approx(0.836, abs=5e-4)
    assert wilson(1.0, 400).high == 1.0
    assert wilson(0.0, 400).low == 0.0
    assert wilson(0.5, 0) == (0.5, 0.5, 0.5)


def panel(text: str, section: str, title: str) -> str:
    part = text[text.index(f'<section id="{section}">') :].partition("</section>")[0]
    (found,) = re.findall(rf"<figure[^>]*>\s*<figcaption><b>{title}</b>.*?</figure>", part, re.S)
    return str(found)


def test_the_filters_bars_change_at_the_threshold(result: Any) -> None:
    counts = [0] * 40
    counts[3], counts[15], counts[16], counts[39] = 4, 3, 2, 1
    result["pool"]["tasks"][3]["entropy"] = counts
    drawn = panel(page(result, []), "filter", "mnist")
    assert drawn.count('<rect class="kept"') == 2
    assert drawn.count('<rect class="removed"') == 2
    assert "0.375 to 0.4: 3 samples" in drawn
    assert "μ = 0.4" in drawn
    result["filter"]["mu"] = 0.39  # inside a bin, which is cut there
    drawn = panel(page(result, []), "filter", "mnist")
    assert drawn.count('<rect class="kept"') == 2
    assert drawn.count('<rect class="removed"') == 3
    result["filter"]["enabled"] = False
    text = page(result, [])
    assert panel(text, "filter", "mnist").count('<rect class="kept"') == 4
    assert "The filter was off" in text
    assert "μ = 0.39, not applied" in panel(text, "filter", "mnist")


def test_a_filter_on_the_meta_model_says_so_and_shows_its_course(result: Any) -> None:
    result["filter"]["entropy_of"] = "meta"
    metrics = make_metrics()
    for i, line in enumerate(metrics):
        line["kept"] = dict.fromkeys(TASKS, i % 2 / 2)
    text = page(result, metrics)
    assert "entropy of the meta-model" in text
    assert "means over the steps" in text
    assert "25 % on average" in text
    assert "100 % at every step" not in text


def test_few_classes_are_a_matrix_and_many_are_pairs(result: Any) -> None:
    text = page(result, [])
    parts = dict(re.findall(r"<summary><b>(\w+)</b>(.*?)</details>", text, re.S))
    assert set(parts) == set(TASKS)
    for name, (classes, *_) in TASKS.items():
        matrix = re.findall(r'<td class="[rw]\d+">', parts[name])
        assert len(matrix) == (classes**2 if classes <= 24 else 0)
        assert ("<rect class=" in parts[name]) == (classes > 24)
        assert "Most confused pairs" in parts[name]
    assert "242 classes, 5 neighbours a field" in parts["omniglot242"]


def test_the_pairs_are_the_largest_ones(result: Any) -> None:
    result["confusion"] = {
        "trashnet": {
            "classes": ["glass", "paper", "card", "metal", "foil", "rest"],
            "true": [0, 0, 1, 2],
            "predicted": [0, 1, 2, 2],
            "count": [7, 2, 5, 1],
        }
    }
    text = page(result, [])
    assert "8 of 15 right; most often paper → card (5 of 5)" in text
    first = text.index('paper</th><td class="t">card</td><td>5 of 5')
    assert first < text.index('glass</th><td class="t">paper</td><td>2 of 9')
    assert '<tr data-total="9"><th scope="row" abbr="glass">' in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true": [0, 6]}, r"confusion\.trashnet: classes must lie in \[0, 6\), got 6"),
        ({"true": [0, -1]}, r"classes must lie in \[0, 6\), got -1"),
        ({"count": [1]}, r"must be equally long, got 2, 2 and 1"),
        ({"count": [1, 0]}, r"counts must be at least 1"),
    ],
)
def test_counts_that_do_not_fit_are_named(result: Any, change: Any, message: str) -> None:
    good = {"classes": list("abcdef"), "true": [0, 1], "predicted": [0, 0], "count": [3, 1]}
    result["confusion"] = {"trashnet": {**good, **change}}
    with pytest.raises(MdftError, match=message):
        page(result, [])


def test_results_of_older_runs_have_a_page_too(result: Any) -> None:
    for key in ("filter", "confusion", "recipe"):
        del result[key]
    for task in result["pool"]["tasks"]:
        del task["entropy"], task["samples"]
    read = Reader(page(result, make_metrics(), "version: 1 # old"))
    assert [a["id"] for a in read.all("section")] == [s for s in SECTIONS if s != "confusion"]
    assert "version: 1 # old" in read.text


def test_a_run_that_did_nearly_nothing(nearly_nothing: Any) -> None:
    read = Reader(page(nearly_nothing, []))
    assert [a["id"] for a in read.all("section")] == ["verdict", "stage1", "filter", "origin"]
    assert "No accuracy was measured" in read.text
    assert "8 task vectors × 1 column of λ." in read.text


def test_stage_2_without_labels_shows_the_distance(result: Any) -> None:
    result.update(accuracy={}, intervals={}, comparisons={}, confusion={})
    for path in result["specialize"].values():
        for point in path:
            point.update(accuracy=None, others=None)
    text = page(result, make_metrics())
    assert "Distance of λ to the individual model" in text
    assert "distance to e_k 11" in panel(text, "stage2", "mnist")


def test_transductive_stands_wherever_accuracy_does(result: Any) -> None:
    assert "ransductive" not in Reader(page(result, [])).text
    result["transductive"] = True
    text = page(result, [])
    assert re.search(r'<strong class="badge">transductive</strong>.*?<h1>', text, re.S)
    for name in ("verdict", "accuracy", "filter", "confusion", "origin"):
        part = text[text.index(f'<section id="{name}"') :].partition("</section>")[0]
        assert "ransductive" in part
