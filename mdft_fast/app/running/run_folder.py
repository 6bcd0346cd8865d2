# SPDX-License-Identifier: Apache-2.0
"""A run's folder: what is in it, and how a stopped run finds its way back."""

from __future__ import annotations

import contextlib
import json
import pickle
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mdft_fast.app.recipe import Recipe, leaves, parse
from mdft_fast.app.report import read_metrics
from mdft_fast.errors import MdftError
from mdft_fast.files import replacing, write_json, write_text
from mdft_fast.learning import StepRecord

START = "start.safetensors"


class RunFolder:
    """Paths and state of one run.

    Nothing is written before :meth:`begin`, or :meth:`claim` where a start is made, so a mistake in
    the recipe leaves nothing behind.

    Args:
        path: the folder.
        recipe: what is run; a folder of another recipe is refused.
        resume: go on with what is there; else the folder must not exist or be empty.

    Raises:
        MdftError: if the folder holds something, or what it holds is another recipe's run.
    """

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool) -> None:
        self.path, self.recipe, self.resume = path, recipe, resume
        self._metrics = path / "metrics.jsonl"  # one JSON line a step
        self.digests: dict[str, str] = {}
        written = path / "recipe.yaml"
        if path.exists() and not path.is_dir():
            raise MdftError(f"{path}: must be a folder, got a file")
        if resume:
            if not written.exists():
                raise MdftError(f"{path}: no run to resume; start it without --resume")
            before = written.read_text(encoding="utf-8")
            with contextlib.suppress(MdftError):  # keys that a later version added hold defaults
                before = Recipe.load(written).dump()
            if before != recipe.dump():
                raise MdftError(
                    f"{path}: the recipe must be the one that the run was started with "
                    f"({written.name}), got another {_first_change(before, recipe.dump())}"
                )
            return
        if path.exists() and any(path.iterdir()):
            raise MdftError(
                f"{path}: must not exist or be empty, got files; --resume goes on with a stopped "
                "run, --output names another folder"
            )

    @property
    def has_begun(self) -> bool:
        """Whether it is written down what the stages start from."""
        return (self.path / "splits.json").exists()

    def claim(self) -> None:
        """Writes whose run it is, so that what follows in the folder may be resumed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.recipe.write(self.path / "recipe.yaml")

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
            check_inputs(self.path, inputs)
            return
        self.claim()
        write_json(self.path / "splits.json", dict(inputs))

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Saves a stage's state after a step, whole or not at all."""
        with replacing(self._state(name)) as temporary:
            torch.save(dict(state), temporary)

    def load_state(self, name: str) -> dict[str, Any] | None:
        """Returns a stage's saved state, or None where it has not begun."""
        path = self._state(name)
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise MdftError(f"{path}: not a readable state: {error}") from None
        return state

    def append_metrics(self, record: StepRecord, stage: str) -> None:
        """Adds a step's line; ``stage`` sets control runs apart."""
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({**record.as_dict(), "stage": stage}) + "\n")

    def trim_metrics(self) -> None:
        """Drops the lines of steps that no saved state holds: a resumed run makes them again."""
        lines = list(self.lines())
        names = {state_name(line["stage"], line["task"]) for line in lines}
        states = {name: self.load_state(name) or {"step": 0} for name in names}
        held = [
            json.dumps(line) + "\n"
            for line in lines
            if line["step"] <= states[state_name(line["stage"], line["task"])]["step"]
        ]
        write_text(self._metrics, "".join(held))

    def lines(self) -> Iterable[dict[str, Any]]:
        """Gives every line of the metrics."""
        if not self._metrics.exists():
            return
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return  # the last line, cut off when the run was killed

    def _state(self, name: str) -> Path:
        return self.path / "state" / f"{name}.pt"


def is_claimed(path: Path) -> bool:
    """Tells whether a run has written into its folder, so that it can be resumed."""
    return (path / "recipe.yaml").exists()


def state_name(stage: str, task: str | None) -> str:
    """Returns the name of a stage's state; stage 1 has no task."""
    return stage if task is None else f"{stage}-{task}"


def check_inputs(path: Path, inputs: Mapping[str, Any]) -> None:
    """Refuses inputs that are not those which the run in a folder was started with.

    Args:
        path: the run's folder.
        inputs: as :meth:`RunFolder.begin` takes them; tasks may be some of the run's.
    """
    before = json.loads((path / "splits.json").read_text(encoding="utf-8"))
    tasks = {task["name"]: task for task in before.get("tasks", [])}
    pairs = [("pool", before.get("pool"), inputs["pool"])]
    for task in inputs["tasks"]:
        first = tasks.get(task["name"], {})
        for key in sorted(task.keys() | first.keys()):
            pairs.append((f"{task['name']}: {key}", first.get(key), task.get(key)))
    for key, was, now in pairs:
        if was != now:
            raise MdftError(
                f"{path}: {key} must be what the run was started with (splits.json), got a "
                f"changed one"
            )


def check_finished(path: Path) -> None:
    """Refuses a run that was stopped: says what is missing, and which command goes on.

    Args:
        path: the run's folder; one in which no run has begun is none that was stopped.
    """
    begun = any((path / name).exists() for name in ("splits.json", START))
    if (path / "result.json").exists() or not begun:
        return
    recipe = Recipe.load(path / "recipe.yaml")
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
    again = shlex.join(["mdft", "run", str(path / "recipe.yaml"), "--resume"])
    raise MdftError(
        f"{path}: must hold a finished run, got one that ended in "
        f"{missing[0] if missing else 'the evaluation'}; go on with: {again}"
    )


def _first_change(before: str, after: str) -> str:
    """Returns the first key in which two recipes differ, and what it was and is."""
    old, new = (dict(leaves(parse(recipe))) for recipe in (before, after))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key}: {new.get(key)!r} in place of {old.get(key)!r}"
    return "spelling of the same values; was it edited by hand?"
