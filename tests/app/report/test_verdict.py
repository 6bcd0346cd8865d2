# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from mdft_fast.app.report import verdict
from mdft_fast.app.report.accuracies import average, compare, points
from mdft_fast.app.report.verdicts import title
from tests.app.report.conftest import Result


def shift(result: Result, method: str, by: float) -> None:
    """Moves a method's accuracy on every task."""
    result["accuracy"][method] = {n: v + by for n, v in result["accuracy"][method].items()}


def paragraph(result: Result, start: str) -> str:
    (found,) = [text for text in verdict(result) if text.startswith(f"**{start}")]
    return found


def set_specialized(result: Result, difference: float, half: float) -> None:
    individual = result["accuracy"]["individual"]
    result["accuracy"]["specialized"] = {n: v + difference for n, v in individual.items()}
    low, high = difference - half, difference + half
    result["intervals"] = {
        name: {"difference": difference, "low": low, "high": high} for name in individual
    }


def test_the_first_sentence_says_what_came_out(result: Result) -> None:
    set_specialized(result, -0.03, 0.01)
    shift(result, "control", -0.3)
    wanted = (
        "**In short**, by accuracy: the meta-model is better than task arithmetic "
        "(68.1 % against 52.1 %) and worse than the individual models (68.1 % against 80.1 %); "
        "the specialized models are worse than the individual models (77.1 % against 80.1 %) and "
        "better than the control without stage 1 (77.1 % against 50.9 %)."
    )
    del result["comparisons"]
    assert verdict(result)[0] == wanted
    for method in ("specialized", "control"):
        del result["accuracy"][method]
    result["accuracy"]["meta"] = result["accuracy"]["task_arithmetic"]
    assert verdict(result)[0] == (
        "**In short**, by accuracy: the meta-model is level with task arithmetic "
        "(52.1 % against 52.1 %) and worse than the individual models (52.1 % against 80.1 %)."
    )


LEVEL = "no measurable difference"
BETTER, WORSE = "better than the individual models", "**worse than the individual models**"


@pytest.mark.parametrize(
    ("difference", "words", "line"),
    [(0.03, BETTER, "better than"), (-0.03, WORSE, "worse than"), (0.001, LEVEL, "level with")],
)
def test_stage_2_says_better_worse_or_neither(
    result: Result, difference: float, words: str, line: str
) -> None:
    set_specialized(result, difference, 0.01)
    text = paragraph(result, "Stage 2")
    assert f": {words} ({points(difference)} points, 95 % interval" in text
    assert f"are {line} the individual ones" in title(result)


def test_stage_2_names_losses_as_well_as_gains(result: Result) -> None:
    set_specialized(result, 0.0, 0.01)
    result["intervals"]["mnist"] = {"difference": 0.02, "low": 0.01, "high": 0.03}
    result["intervals"]["dtd10"] = {"difference": -0.04, "low": -0.06, "high": -0.02}
    text = paragraph(result, "Stage 2")
    assert "By task: better on mnist (+2.0), worse on dtd10 (−4.0)" in text
    assert "not to be told apart on the other 6." in text


def test_the_average_interval_is_measured_or_of_independent_test_sets(result: Result) -> None:
    gain = compare(result, "specialized", "individual")
    assert gain
    assert gain.high - gain.difference == pytest.approx(0.015 / math.sqrt(8))
    result["intervals"]["average"] = {"difference": 0.007, "low": -0.0123, "high": 0.0456}
    gain = compare(result, "specialized", "individual")
    assert gain
    assert (gain.low, gain.high, gain.sign) == (-0.0123, 0.0456, 0)


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (0.0, "better than task arithmetic ("),
        (-0.3, "**worse than task arithmetic**, which needs no learning ("),
        (-0.16, "no measurable difference to task arithmetic ("),
    ],
)
def test_stage_1_against_task_arithmetic(result: Result, by: float, words: str) -> None:
    shift(result, "meta", by)
    assert words in paragraph(result, "Stage 1")


def test_stage_1_names_the_tasks_it_loses(result: Result) -> None:
    result["accuracy"]["meta"]["gtsrb"] = result["accuracy"]["task_arithmetic"]["gtsrb"] - 0.05
    text = paragraph(result, "Stage 1")
    assert "ahead on 7 of 8 tasks and behind on gtsrb (−5.0)." in text
    assert "points for one model in place of 8." in text


NEEDED, NOT_NEEDED = "Stage 1 is what makes", "**Stage 1 was not needed for stage 2 here.**"
HARMFUL = "**Stage 2 does better without stage 1 here.**"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.006, 0.004, NOT_NEEDED), (-0.02, -0.01, HARMFUL),
     (0.01, 0.02, f"{NEEDED} this difference.")],
)  # fmt: skip
def test_the_control_decides_what_stage_1_is_worth(
    result: Result, low: float, high: float, words: str
) -> None:
    interval = {"difference": (low + high) / 2, "low": low, "high": high}
    result["comparisons"]["specialized-control"] = interval
    assert paragraph(result, "Control").endswith(words)


def test_an_equal_control_without_an_interval(result: Result) -> None:
    del result["comparisons"]
    result["accuracy"]["control"] = dict(result["accuracy"]["specialized"])
    text = paragraph(result, "Control")
    assert "(0.0 points" in text
    assert text.endswith(NOT_NEEDED)
    shift(result, "control", -0.1)
    assert paragraph(result, "Control").endswith(f"{NEEDED} this difference.")


def test_without_labels_only_the_holdout_speaks(result: Result) -> None:
    result.update(accuracy={}, intervals={}, comparisons={})
    first, second = verdict(result)
    assert first.startswith("**No accuracy was measured**")
    assert second.startswith("**Without labels**")
    assert "fell from 1.404 at the start to 0.812" in second
    assert title(result).endswith("learned, and not measured with labels")
    result["holdout"] = {"start": 1.0, "meta": 1.5}
    assert "**rose** from 1.000" in paragraph(result, "Without labels")
    for absent in ({}, None):
        result["holdout"] = absent
        assert len(verdict(result)) == 1
    del result["holdout"]
    assert len(verdict(result)) == 1


def test_transductive_comes_first(result: Result) -> None:
    assert not any("ransductive" in text for text in verdict(result))
    result["transductive"] = True
    assert verdict(result)[0].startswith("**Transductive**")


def test_no_stage_2(result: Result) -> None:
    for method in ("specialized", "control"):
        del result["accuracy"][method]
    result["coefficients"]["specialize"] = {}
    assert verdict(result)[-1] == "**Stage 2** was not run."
    assert "the meta-model is better than task arithmetic" in title(result)


def test_labels_of_some_tasks_only(result: Result) -> None:
    for method in result["accuracy"].values():
        del method["mnist"]
    del result["intervals"]["mnist"]
    gain = compare(result, "specialized", "individual")
    assert gain
    assert gain.tasks == 7
    assert gain.first == pytest.approx(average(result["accuracy"]["specialized"].values()))
    assert "on average over 7 tasks" in paragraph(result, "Stage 2")


def test_a_single_task_has_no_average(result: Result) -> None:
    result["accuracy"] = {m: {"mnist": v["mnist"]} for m, v in result["accuracy"].items()}
    result["pool"]["tasks"] = [t for t in result["pool"]["tasks"] if t["name"] == "mnist"]
    result["intervals"] = {"mnist": result["intervals"]["mnist"]}
    text = " ".join(verdict(result))
    assert "average" not in text
    assert "on its one task" in text


def test_points() -> None:
    differences = {0.0061: "+0.6", -0.12: "−12.0", 0.0004: "0.0", -0.0004: "0.0"}
    assert {value: points(value) for value in differences} == differences
