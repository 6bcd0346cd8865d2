# SPDX-License-Identifier: Apache-2.0
"""The report's files: what stands in the Markdown, what is read, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mdft_fast.app.report import page, read_metrics, read_result, write_report
from mdft_fast.app.report.coefficient_maps import column_blocks
from mdft_fast.app.report.report_sections import legend
from mdft_fast.errors import MdftError
from tests.app.report.conftest import Result, Write, make_metrics
from tests.conftest import contents


def written(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_report_holds_every_part(result: Result, folder: Write) -> None:
    path = write_report(folder(result))
    text = path.read_text(encoding="utf-8")
    assert path.name == "report.md"
    assert re.findall(r"^## (.*)", text, re.M) == [
        "Accuracy", "Stage 1: the meta-model", "Stage 2: the specialized models", "Samples",
        "Time and memory", "Where this comes from",
    ]  # fmt: skip
    for line in (
        "| **average** | **45.8** | **52.1** | **68.1** | **80.1** | **80.9** | **80.8** |",
        "| omniglot242 | 242 | 480 | 384 | 96 | 21 | 5.5 % | 400 |",
        "| mnist | +0.7 | −0.8 to +2.2 | 11.00 → 1.19 | 42.0 |",
        "| **sum** | **143.21** |  |",
        "1,216 numbers were learned: 8 task vectors × 152 columns of λ, in 100 steps.",
        "| `norm.num_batches` | integer buffer |",
        "A step of stage 1: 480.0 ms in the median, 266 samples a second.",
    ):
        assert line in text.splitlines()
    for words in ("ab" * 32, "version: 1", "torch 2.11.0"):
        assert words in text
    assert "\n\n\n" not in text
    assert "](" not in text.replace("[report.html](report.html)", ""), "no pictures"
    assert {file.name for file in path.parent.iterdir()} == {
        "metrics.jsonl", "recipe.yaml", "report.html", "report.md", "result.json",
    }  # fmt: skip


def test_its_words_are_explained_before_they_are_needed(result: Result, folder: Write) -> None:
    words = [
        "λ", "e_k", "teacher", "equation (4)", "pre-trained", "task arithmetic", "meta (stage 1)",
        "individual", "control (no stage 1)", "specialized (stage 2)",
    ]  # fmt: skip
    assert [word for _, word, _ in legend(result)] == words
    text, html = written(folder(result)), page(result, [])
    for anchor, word, meaning in legend(result):
        assert text.index(f"* **{word}**: {meaning}") < text.index("## Accuracy")
        meaning = meaning.replace("'", "&#39;")
        place = html.index(f'<div id="word-{anchor}"><dt>{word}</dt><dd>{meaning}</dd>')
        assert place < html.index("<h2>Accuracy</h2>")
        assert f'<a class="word" href="#word-{anchor}">{word}</a>' in html
    del result["accuracy"]["control"]
    assert "control (no stage 1)" not in [word for _, word, _ in legend(result)]


def test_a_report_can_be_written_again(result: Result, folder: Write) -> None:
    run = write_report(folder(result)).parent
    html = page(read_result(run), read_metrics(run))
    assert html == page(result, read_metrics(run)) == (run / "report.html").read_text("utf-8")
    before = contents(run)
    write_report(run)
    assert before == contents(run)


def test_a_run_that_did_nearly_nothing(nearly_nothing: Result, folder: Write) -> None:
    run = folder(nearly_nothing, [])
    (run / "metrics.jsonl").unlink()
    (run / "recipe.yaml").unlink()
    text = written(run)
    assert "Every tensor is merged." in text
    assert "| commit of the native build | unknown |" in text
    assert "## Accuracy" not in text


def test_warnings_and_transductive_stand_out(result: Result, folder: Write) -> None:
    result.update(transductive=True, warnings=["task mnist: none of 384 samples passes"])
    text = written(folder(result))
    assert text.index("**Transductive**") < text.index("**Stage 1**") < text.index("## Accuracy")
    assert "* task mnist: none of 384 samples passes" in text
    assert text.count("**Transductive**") == 4  # at the top, and below each of three tables


def test_a_model_measured_on_some_tasks_has_no_average(result: Result, folder: Write) -> None:
    result["accuracy"]["specialized"] = {"mnist": 0.98}
    result["intervals"] = {"mnist": {"difference": 0.005, "low": -0.01, "high": 0.02}}
    text = written(folder(result))
    (line,) = [line for line in text.splitlines() if line.startswith("| **average**")]
    assert line.endswith("| **\u2013** |")
    assert "An average is left out" in text
    assert "An average is left out" in page(result, [])


def test_blocks_of_columns() -> None:
    tensors = ["cls", "patch.weight", "blocks.0.a", "blocks.0.b", "blocks.1.a", "norm.weight"]
    assert column_blocks(tensors) == [("stem", 0, 2), ("0", 2, 4), ("1", 4, 5), ("tail", 5, 6)]
    blocks = ["stem", "resblocks.0", "resblocks.1", "tail"]
    assert column_blocks(blocks) == [("stem", 0, 1), ("0", 1, 2), ("1", 2, 3), ("tail", 3, 4)]
    assert column_blocks(["all"]) == [("all", 0, 1)]


def test_an_unfinished_line_of_metrics_is_left_out(result: Result, folder: Write) -> None:
    run = folder(result)
    whole = read_metrics(run)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "constr')
    assert read_metrics(run) == whole
    assert len(whole) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"result\.json: schema: "),
        ({"seed": "x"}, r"result\.json: seed: "),
        ({"pool": {}}, r"result\.json: pool\.checksum: "),
        ({"accuracy": {"x": {}}}, r"result\.json: compared: must name all of accuracy, got no 'x'"),
        ({"compared": [{"name": "x"}]}, r"result\.json: compared\.0\.label: "),
    ],
)
def test_a_result_of_another_form_is_named(
    result: Result, folder: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MdftError, match=message):
        read_result(folder({**result, **change}))


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"result\.json: not readable: No such file"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(MdftError, match=r"result\.json: not JSON"):
        write_report(tmp_path)


def test_metrics_that_end_before_the_run_did(result: Result, folder: Write) -> None:
    first = {"stage": "construct", "task": None, "steps": 100}
    second = {"stage": "specialize", "task": "mnist", "steps": 2}
    result["stages"] = [first, second]
    lines = make_metrics()
    late = [{**lines[0], "stage": "specialize", "task": "mnist", "step": n} for n in (1, 2)]
    for gone, message in (
        (lines[:2], "100 steps of construct, got 2"),
        (lines, "2 steps of specialize of 'mnist', got 0"),
        (late[:1], "2 steps of specialize of 'mnist', got 1"),
    ):
        with pytest.raises(
            MdftError, match=rf"metrics.jsonl: must have a line .* {message}: lines"
        ):
            write_report(folder(result, gone))
    for whole in ([*lines, *late], late, []):  # resumed without those of stage 1, or of all
        write_report(folder(result, whole))


def test_a_bad_line_of_metrics_is_named(result: Result, folder: Write) -> None:
    run = folder(result, [])
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "construct"}) + "\n")
    with pytest.raises(MdftError, match=r"metrics\.jsonl, line 1: task: "):
        write_report(run)
