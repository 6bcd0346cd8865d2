# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdft_fast.app.report import page, read_metrics, read_result, write_report
from mdft_fast.app.report.coefficient_pictures import groups
from mdft_fast.app.report.legend import legend
from mdft_fast.errors import MdftError

Write = Callable[..., Path]
PICTURES = {
    *("accuracy", "gains", "coefficients", "mixture", "losses"),
    *("accuracy_path", "distance_path", "phases"),
}


def size_of(picture: Path) -> tuple[int, int]:
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_the_report_holds_every_part(result: dict[str, Any], folder: Write) -> None:
    path = write_report(folder(result))
    text = path.read_text(encoding="utf-8")
    assert path.name == "report.md"
    assert re.findall(r"^## (.*)", text, re.M) == [
        "Accuracy",
        "Stage 1: the meta-model",
        "Stage 2: the specialized models",
        "Samples",
        "Time and memory",
        "Where this comes from",
    ]
    assert "| **average** | **45.8** | **52.1** | **68.1** | **80.1** |" in text
    assert "| omniglot242 | 242 | 480 | 384 | 96 | 21 | 5.5 % | 400 |" in text
    assert "1,216 numbers were learned: 8 task vectors x 152 columns of λ, in 100 steps." in text
    assert "ab" * 32 in text
    assert "| `norm.num_batches` | integer buffer |" in text
    assert "version: 1" in text
    assert "A step of stage 1: 480.0 ms in the median, 266 samples a second." in text
    assert "torch 2.11.0" in text


def test_its_words_are_explained_before_they_are_needed(
    result: dict[str, Any], folder: Write
) -> None:
    words = ["λ", "e_k", "Task arithmetic", "Meta-model", "Individual", "Specialized", "Control"]
    assert [word for word, _ in legend(result)] == words
    text = write_report(folder(result)).read_text(encoding="utf-8")
    html = page(result, [])
    for word, meaning in legend(result):
        assert text.index(f"* **{word}**: {meaning}") < text.index("## Accuracy")
        shown = html.index(f"<dt>{word}</dt><dd>{meaning.replace(chr(39), '&#39;')}</dd>")
        assert shown < html.index("<h2>Accuracy</h2>")
    del result["accuracy"]["control"]
    assert [word for word, _ in legend(result)] == words[:-1]


def test_every_picture_is_there_and_of_a_sensible_size(
    result: dict[str, Any], folder: Write
) -> None:
    path = write_report(folder(result))
    linked = re.findall(r"!\[[^\]]+\]\((.*?)\)", path.read_text(encoding="utf-8"))
    files = {file.stem for file in (path.parent / "pictures").iterdir()}
    assert files == PICTURES
    assert {Path(link).stem for link in linked} == PICTURES
    for link in linked:
        width, height = size_of(path.parent / link)
        assert 800 <= width <= 1700
        assert 200 <= height <= 1700
        assert (path.parent / link).stat().st_size > 8000


def test_a_report_can_be_written_again(result: dict[str, Any], folder: Write) -> None:
    path = write_report(folder(result))
    html = page(read_result(path.parent), read_metrics(path.parent))
    assert (path.parent / "report.html").read_text(encoding="utf-8") == html
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    write_report(path.parent)
    after = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert before == after


def test_without_labels(result: dict[str, Any], folder: Write) -> None:
    write_report(folder(result))
    result.update(accuracy={}, intervals={}, comparisons={})
    for path in result["specialize"].values():
        for point in path:
            point.update(accuracy=None, others=None)
    written = write_report(folder(result))
    text = written.read_text(encoding="utf-8")
    assert "## Accuracy" not in text
    files = {file.stem for file in (written.parent / "pictures").iterdir()}
    assert files == PICTURES - {"accuracy", "gains", "accuracy_path"}, "older ones must go"


def test_a_run_that_did_nearly_nothing(result: dict[str, Any], folder: Write) -> None:
    result.update(accuracy={}, intervals={}, specialize={}, phases=[], holdout={}, commit=None)
    result["coefficients"]["specialize"] = {}
    result["coefficients"]["construct"] = [[0.3] * 152] * 8
    result["coefficients"]["start"] = [[0.3] * 152] * 8
    result["pool"]["left_out"] = {}
    run = folder(result, [])
    (run / "metrics.jsonl").unlink()
    (run / "recipe.yaml").unlink()
    text = write_report(run).read_text(encoding="utf-8")
    assert "Every tensor is merged." in text
    assert "| commit of the native build | unknown |" in text
    assert {file.stem for file in (run / "pictures").iterdir()} == {"coefficients"}


def test_warnings_and_transductive_stand_out(result: dict[str, Any], folder: Write) -> None:
    result.update(transductive=True, warnings=["task mnist: none of 384 samples passes"])
    text = write_report(folder(result)).read_text(encoding="utf-8")
    assert text.index("**Transductive**") < text.index("**Stage 1**") < text.index("## Accuracy")
    assert "* task mnist: none of 384 samples passes" in text
    assert text.count("**Transductive**") == 4  # at the top, and below each of three tables


def test_a_method_measured_on_some_tasks_has_no_average(
    result: dict[str, Any], folder: Write
) -> None:
    result["accuracy"]["specialized"] = {"mnist": 0.98}
    result["intervals"] = {"mnist": {"difference": 0.005, "low": -0.01, "high": 0.02}}
    text = write_report(folder(result)).read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| **average**")]
    assert line.endswith("| **\u2013** |")
    assert "An average is left out" in text


def test_blocks_of_columns() -> None:
    tensors = ["cls", "patch.weight", "blocks.0.a", "blocks.0.b", "blocks.1.a", "norm.weight"]
    assert groups(tensors) == [("stem", 0, 2), ("0", 2, 4), ("1", 4, 5), ("tail", 5, 6)]
    blocks = ["stem", "resblocks.0", "resblocks.1", "tail"]
    assert groups(blocks) == [("stem", 0, 1), ("0", 1, 2), ("1", 2, 3), ("tail", 3, 4)]
    assert groups(["all"]) == [("all", 0, 1)]


def test_an_unfinished_line_of_metrics_is_left_out(result: dict[str, Any], folder: Write) -> None:
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
    ],
)
def test_a_result_of_another_form_is_named(
    result: dict[str, Any], folder: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MdftError, match=message):
        read_result(folder({**result, **change}))


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"result\.json: not readable: No such file"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(MdftError, match=r"result\.json: not JSON"):
        write_report(tmp_path)


def test_a_bad_line_of_metrics_is_named(result: dict[str, Any], folder: Write) -> None:
    run = folder(result, [])
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "construct"}) + "\n")
    with pytest.raises(MdftError, match=r"metrics\.jsonl, line 1: task: "):
        write_report(run)
