# SPDX-License-Identifier: Apache-2.0
"""What a run compares: the one table that labels, order, colors and meanings come from.

A run writes the rows that it used into ``result.json``; report, console and pages read them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter

from mdft_fast.model import TASK_ARITHMETIC


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """A row of the table.

    Attributes:
        name: the key in ``accuracy``.
        label: at the head of a column.
        meaning: one line; "" where the legend need not say it.
        kind: whether one model does all tasks, or each task has a model of its own.
        coefficients: its λ: a number is measured as it stands, words say where it comes from.
        stage: what makes it; None where nothing is learned.
        short: the label where a terminal's width counts; "": the label up to its bracket.
        long: the label where nothing else explains it; "": the label.
        phrase: the label in a sentence; "": the label.
        against: names that the verdict compares it with.
        color: of its marks on the page.
        mark: their shape.
    """

    name: str
    label: str
    meaning: str
    kind: Literal["one model", "one model a task"]
    coefficients: float | str = "learned"
    stage: Literal[1, 2] | None = None
    short: str = ""
    long: str = ""
    phrase: str = ""
    against: tuple[str, ...] = ()
    color: Literal["gray", "orange", "blue", "ink", "wine", "vermilion", "green"] = "green"
    mark: Literal["disc", "square", "diamond", "bar", "cross", "ring", "triangle"] = "triangle"

    def __post_init__(self) -> None:
        """Fills the labels that are left out."""
        for field, label in (
            ("short", self.label.partition(" (")[0]), ("long", self.label), ("phrase", self.label)
        ):  # fmt: skip
            object.__setattr__(self, field, getattr(self, field) or label)


COMPARED = (
    ComparedModel(
        "pretrained", "pre-trained", "the base as it was, λ = 0.", "one model", 0.0,
        short="base", long="pre-trained (λ = 0)", phrase="the pre-trained base",
        color="gray", mark="disc",
    ),
    ComparedModel(
        "task_arithmetic", "task arithmetic",
        f"λ = {TASK_ARITHMETIC:g} everywhere; nothing is learned.", "one model", TASK_ARITHMETIC,
        short="arithmetic", long=f"task arithmetic (λ = {TASK_ARITHMETIC:g})",
        color="orange", mark="square",
    ),
    ComparedModel(
        "meta", "meta (stage 1)",
        "the meta-model, one model for all tasks; its λ is learned without labels.", "one model",
        stage=1, long="meta-model, stage 1", phrase="the meta-model",
        against=("task_arithmetic", "individual"), color="blue", mark="diamond",
    ),
    ComparedModel(
        "individual", "individual", "the fine-tuned models of the pool, one a task: λ = e_k.",
        "one model a task", "e_k", long="individual models", phrase="the individual models",
        color="ink", mark="bar",
    ),
    ComparedModel(
        "control", "control (no stage 1)",
        "stage 2 from task arithmetic, without stage 1: what stage 1 adds to stage 2 is the "
        "difference to it.", "one model a task", stage=2,
        long="control: stage 2 without stage 1", phrase="the control without stage 1",
        color="wine", mark="cross",
    ),
    ComparedModel(
        "specialized", "specialized (stage 2)",
        "one model a task; λ moves from the meta-model's towards e_k in a few steps.",
        "one model a task", stage=2, long="specialized models, stage 2",
        phrase="the specialized models", against=("individual", "control"),
        color="vermilion", mark="ring",
    ),
)  # fmt: skip


START = ComparedModel(
    "start", "start (the merge)", "what λ starts from, as it is: λ = 1 at it, 0 at the tasks.",
    "one model", "e_0", long="start: the merge alone", phrase="the start", color="green",
    mark="triangle",
)  # fmt: skip


def label_of(name: str) -> str:
    """Returns a compared model's label at the head of a column."""
    return next(model.label for model in COMPARED if model.name == name)


def rows_of_table(start: bool) -> tuple[ComparedModel, ...]:
    """Returns the rows that a run compares.

    Args:
        start: whether λ starts from a merge, which has a row then, and is what the meta-model is
            compared with too.
    """
    if not start:
        return COMPARED
    rows = []
    for model in COMPARED:
        if model.name == "task_arithmetic":
            meaning = f"λ = {TASK_ARITHMETIC:g} at the tasks, 0 at the start; nothing is learned."
            model = dataclasses.replace(model, meaning=meaning)
        if model.name == "meta":
            model = dataclasses.replace(model, against=(START.name, *model.against))
            rows.append(START)
        rows.append(model)
    return tuple(rows)


def compared_models(result: Mapping[str, Any]) -> list[ComparedModel]:
    """Returns what a result compares, in order; a result without rows has those of the table."""
    if "compared" in result:
        return TypeAdapter(list[ComparedModel]).validate_python(result["compared"])
    return [model for model in COMPARED if model.name in result["accuracy"]]
