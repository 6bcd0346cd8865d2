# SPDX-License-Identifier: Apache-2.0
"""A run's folder: what is in it, and how a stopped run finds its way back."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import METRICS, TIMES, WITHOUT_METRICS, Metric, read_metrics
from mdft_fast.app.running.folder_lock import LOCK, locked
from mdft_fast.app.running.run_state import read_state, write_state
from mdft_fast.app.running.same_inputs import (
    RECIPE,
    SPLITS,
    check_inputs,
    check_recipe,
    write_inputs,
)
from mdft_fast.errors import MdftError
from mdft_fast.files import is_unfinished, naming, remove_unfinished, write_text
from mdft_fast.json_checksums import with_checksum
from mdft_fast.learning import StepRecord

START = "start.safetensors"


class RunFolder:
    """Paths and state of one run; a context in which no other process has the folder.

    The folder is made and locked on entry, before anything is loaded. Nothing is written into it
    before :meth:`begin`, or :meth:`claim` where a start is made: a mistake in the recipe leaves
    nothing behind.

    Args:
        path: the folder.
        recipe: what is run; a folder of another recipe is refused.
        resume: go on with what is there; else the folder must not exist or be empty.
    """

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool) -> None:
        self.path, self.recipe, self.resume = path, recipe, resume
        self._metrics = path / METRICS
        self._run = ""  # names recipe and inputs, in every state
        self._held = contextlib.ExitStack()
        self.digests: dict[str, str] = {}

    def __enter__(self) -> RunFolder:
        """Takes the folder.

        Raises:
            MdftError: if it cannot be made, another process has it, it holds something, or what it
                holds is another recipe's run.
        """
        if self.resume and not is_claimed(self.path):
            raise MdftError(f"{self.path}: no run to resume; start it without --resume")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.path, ", or name another folder with --output"))
            if self.resume:
                check_recipe(self.path, self.recipe)
            else:
                self._check_empty()
            remove_unfinished(self.path, ("state", "meta", "specialized/*"))
            self._held = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        """Lets the folder go."""
        self._held.close()

    def _check_empty(self) -> None:
        if is_claimed(self.path):
            raise MdftError(
                f"{self.path}: must not exist or be empty, got a run; --resume goes on with it, "
                "--output names another folder"
            )
        if any(not is_unfinished(path) for path in self.path.iterdir() if path.name != LOCK):
            raise MdftError(
                f"{self.path}: must not exist or be empty, got files; --resume goes on with a "
                "stopped run, --output names another folder"
            )

    @property
    def has_begun(self) -> bool:
        """Whether it is written down what the stages start from."""
        return (self.path / SPLITS).exists()

    def claim(self) -> None:
        """Writes whose run it is, so that what follows in the folder may be resumed."""
        self.recipe.write(self.path / RECIPE)

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Writes what the run starts from; a resumed run must start from the same.

        Args:
            inputs: digests of the pool and of the samples, the splits; plain JSON values. The
                samples' are kept in ``digests``, by task.

        Raises:
            MdftError: if a resumed run's inputs are not those that it was started with.
        """
        self.digests = {task["name"]: task["samples"] for task in inputs["tasks"]}
        if self.resume and self.has_begun:
            self._run = check_inputs(self.path, inputs)
            self.claim()  # where things lie now
        else:
            self.claim()
            self._run = write_inputs(self.path, self.recipe, inputs)

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Saves a stage's state after a step, whole or not at all."""
        write_state(self._state(name), state, self._owner(name))

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Returns a stage's saved state, or None where it has not begun, or nothing is resumed."""
        path = self._state(name)
        return read_state(path, self._owner(name)) if self.resume and path.exists() else None

    def append_metrics(self, record: StepRecord, stage: str) -> None:
        """Adds a step's line, on the disk before its state; ``stage`` sets control runs apart."""
        with naming(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(_line({**record.as_dict(), "stage": stage}))
            file.flush()
            os.fsync(file.fileno())

    def trim_metrics(self) -> None:
        """Drops the lines of steps that no saved state holds: a resumed run makes them again.

        Raises:
            MdftError: if a state holds a step whose line is missing, or either is damaged.
        """
        lines = read_metrics(self.path)
        last = {state_name(line["stage"], line["task"]): line["step"] for line in lines}
        names = [path.stem for path in (self.path / "state").glob("*.pt")]
        states = {name: self.load_state(name) for name in names}
        done = {name: state["step"] for name, state in states.items() if state is not None}
        for name, step in done.items() if lines else ():
            if last.get(name, 0) < step:
                raise MdftError(
                    f"{self._metrics}: must have a line for each of {step} steps of {name}, got "
                    f"{last.get(name, 0)}; {WITHOUT_METRICS}"
                )
        held = [
            _line(line)
            for line in lines
            if line["step"] <= done.get(state_name(line["stage"], line["task"]), 0)
        ]
        write_text(self._metrics, "".join(held))

    def lines(self) -> list[Metric]:
        """Returns every line of the metrics."""
        return read_metrics(self.path)

    def _owner(self, name: str) -> str:
        return f"{self._run}/{name}"

    def _state(self, name: str) -> Path:
        return self.path / "state" / f"{name}.pt"


def _line(metric: Mapping[str, Any]) -> str:
    return json.dumps(with_checksum(metric, TIMES)) + "\n"


def is_claimed(path: Path) -> bool:
    """Tells whether a run has written into its folder, so that it can be resumed."""
    return (path / RECIPE).exists()


def state_name(stage: str, task: str | None) -> str:
    """Returns the name of a stage's state; stage 1 has no task."""
    return stage if task is None else f"{stage}-{task}"


def check_finished(path: Path) -> None:
    """Refuses a run that was stopped: says what is missing, and which command goes on.

    Args:
        path: the run's folder; one in which no run has begun is none that was stopped.
    """
    begun = any((path / name).exists() for name in (SPLITS, START))
    if (path / "result.json").exists() or not begun:
        return
    recipe = Recipe.load(path / RECIPE)
    second, tasks = recipe.specialize, recipe.specialized
    stages = [("stage 1", "construct", recipe.construct.steps)]
    stages += [(f"stage 2 of {n!r}", state_name("specialize", n), second.steps) for n in tasks]
    if second.control:
        stages += [(f"the control of {n!r}", state_name("control", n), second.steps) for n in tasks]
    done = Counter(state_name(line["stage"], line["task"]) for line in read_metrics(path))
    missing = [
        f"{words} ({done[name]} of {steps} steps)"
        for words, name, steps in stages
        if done[name] < steps
    ]
    again = shlex.join(["mdft", "run", str(path / RECIPE), "--resume"])
    raise MdftError(
        f"{path}: must hold a finished run, got one that ended in "
        f"{missing[0] if missing else 'the evaluation'}; go on with: {again}"
    )
