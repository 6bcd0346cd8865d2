# SPDX-License-Identifier: Apache-2.0
"""A run's steps for other programs: a table in CSV, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdft_fast.app.report import Metric, read_metrics
from mdft_fast.errors import need
from mdft_fast.files import write_text
from mdft_fast.learning import StepRecord

_FIRST = ("stage", "task", "step", "loss", "lr", "seconds", "samples_per_s")


def write_table(folder: Path) -> None:
    """Writes a run folder's ``metrics.jsonl`` as ``metrics.csv``.

    A line a step; what metrics hold by task has a column a task, ``losses/<task>``.
    """
    rows = [_row(line) for line in read_metrics(folder)]
    columns = dict.fromkeys([*_FIRST, *(key for row in rows for key in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "metrics.csv", text.getvalue())


def _row(line: Metric) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": part for name, part in value.items()}
        else:
            flat[key] = value
    return flat


def check_log(log: str) -> None:
    """Refuses a recipe's ``log`` whose extra is not installed."""
    if log == "tensorboard":
        need("tensorboard", "tensorboard", who="log: tensorboard")


class Events:
    """Scalars of each step for TensorBoard, where they are wanted.

    Args:
        writer: torch's ``SummaryWriter``; None: nothing is written.
    """

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def step(self, name: str, record: StepRecord) -> None:
        """Writes loss and learning rate of a step of the stage ``name``, and its tasks' values."""
        if self._writer is None:
            return
        values = record.as_dict()
        scalars = {"loss": values["loss"], "lr": values["lr"]}
        for key in ("losses", "kept") if record.task is None else ():
            scalars |= {f"{key}/{task}": value for task, value in values[key].items()}
        for key, value in scalars.items():
            self._writer.add_scalar(f"{name}/{key}", value, record.step)


@contextmanager
def events_of(folder: Path, wanted: bool) -> Iterator[Events]:
    """Gives what takes a run's steps, and closes it.

    Args:
        folder: the run's; events go to ``tensorboard/`` in it, once there is one.
        wanted: whether the recipe's ``log`` names TensorBoard, which is installed then.
    """
    if not wanted:
        yield Events()
        return
    writer = need("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
    with writer:
        yield Events(writer)
