# SPDX-License-Identifier: Apache-2.0
"""A learning that failed says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast.app.running.learning_failures import failures
from mdft_fast.app.running.stages import Learned
from mdft_fast.learning import RunResult

START = torch.full((2, 3), 0.3)


def _result(end: Tensor) -> RunResult:
    return RunResult(end, torch.stack([START, end]), ("a", "b", "c"), ("x", "y"), 1.0)


def _said(end: Tensor, before: float = 1.0, after: float = 0.5) -> list[str]:
    return failures(Learned(_result(end), {}, {}, {"start": before, "meta": after}))


def test_a_learning_that_went_well_is_silent() -> None:
    assert _said(START + 0.1) == []
    assert failures(Learned(_result(START + 0.1), {}, {}, {})) == []


@pytest.mark.parametrize(
    ("end", "before", "after", "words"),
    [
        (START * 1e6, 1.0, 0.5, "Stage 1: λ diverged, its largest value is 3e+05"),
        (START, 1.0, 1.0, "Stage 1: λ did not move, as every gradient was zero"),
        (START + 0.1, 1.0, 1.5, "cross-entropy on held-out samples rose from 1 to 1.5"),
        (START + 0.1, 1.0, float("nan"), "cross-entropy on held-out samples rose from 1 to nan"),
    ],
)
def test_signs_of_failure(end: Tensor, before: float, after: float, words: str) -> None:
    (said,) = _said(end, before, after)
    assert words in said


def test_stage_2_is_named() -> None:
    learned = Learned(_result(START + 0.1), {"x": _result(START * 100)}, {}, {})
    (said,) = failures(learned)
    assert said.startswith("Stage 2 of 'x': λ diverged")
    assert "specialize.optimizer.lr" in said
