# SPDX-License-Identifier: Apache-2.0
"""Kills commands at their file operations; afterwards the same bits must come out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mdft_fast.app.cli import app
from mdft_fast.app.opening import pack
from mdft_fast.app.recipe import Recipe
from mdft_fast.checkpoints import convert
from tests.app.conftest import recipe_of, run_until, write_files
from tests.reliability.children import child

_OPERATIONS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "ctypes.dlsym",
}  # fmt: skip
_PATIENCE_S = 300.0
Say = Callable[[Any], None]


class Scenario(NamedTuple):
    """A command that writes.

    Attributes:
        name: of the command.
        arguments: its own.
        again: arguments that take up what a kill leaves; the first that ends well counts.
        makes: what comes out, below the work folder: it is compared.
        prepare: puts the work folder into the state in which the command is called.
    """

    name: str
    arguments: list[str]
    again: list[list[str]]
    makes: str
    prepare: Callable[[Path], None]


def scenarios(work: Path, names: Collection[str]) -> list[Scenario]:
    """Writes a tiny pool and returns commands on it; ``work`` is where they write."""
    beside = work.parent
    files = write_files(_made(beside / "files"))
    recipe, old = files / "recipe.yaml", beside / "old.safetensors"
    recipe.write_text(yaml.safe_dump({**recipe_of(files), "start": "average"}))
    few = ["construct.steps=3", "specialize={steps: 1, tasks: [shapes], control: false}"]
    sets = [word for change in few for word in ("--set", change)]
    stopped, finished = beside / "stopped", beside / "finished"
    run = ["run", str(recipe), *sets, "-o", str(work / "run"), "-q"]
    pack_, model = ["pack", str(recipe), str(work / "pool")], files / "models/shapes.safetensors"
    export = ["export", str(finished), "--to", str(work / "out.safetensors"), "--overwrite"]
    convert_ = ["convert", str(model), str(work / "new.safetensors"), "--overwrite"]
    makers: dict[str, Callable[[], object]] = {
        "resume": lambda: run_until(2, Recipe.load(recipe, [*few, f"output={stopped}"])),
        "export": lambda: _call([*run[:-2], str(finished), "-q"]),
        "pack": lambda: pack(Recipe.load(recipe), beside / "packed", codec="int8"),
        "convert": lambda: convert(files / "base.safetensors", old),
    }
    for name in makers.keys() & set(names):
        made = child(lambda say, name=name: (makers[name](), say("made"))[1], _PATIENCE_S)
        assert made.said == ["made"], name
    known = [
        Scenario("run", run, [run, [*run, "--resume"]], "run", lambda _: None),
        Scenario("resume", [*run, "--resume"], [run, [*run, "--resume"]], "run",
                 lambda work: _copy(stopped, work / "run")),
        Scenario("pack", [*pack_, "--overwrite"], [[*pack_, "--overwrite"]], "pool",
                 lambda work: _copy(beside / "packed", work / "pool")),
        Scenario("export", export, [export], "out.safetensors", lambda _: None),
        Scenario("convert", convert_, [convert_], "new.safetensors",
                 lambda work: _copy(old, work / "new.safetensors")),
    ]  # fmt: skip
    return [scenario for scenario in known if scenario.name in names]


def kill_at_random(scenario: Scenario, work: Path, times: int, seed: int) -> Counter[str]:
    """Kills a command at that many of its file operations, each drawn at random.

    Returns:
        How often it came out how: "same bits", or in words what was wrong.
    """
    _fresh(work, scenario)
    whole = child(lambda say: _run(scenario.arguments, work, None, say), _PATIENCE_S)
    code, operations = whole.said[-1]
    assert code == 0, f"{scenario.name} fails unkilled"
    wanted, draw = _bits(work / scenario.makes), random.Random(f"{seed} {scenario.name}")
    outcomes: Counter[str] = Counter()
    while outcomes.total() < times:
        at = draw.randint(1, operations)
        _fresh(work, scenario)
        before = _bits(work / scenario.makes)
        killed = child(lambda say, at=at: _run(scenario.arguments, work, at, say), _PATIENCE_S)
        if killed.hung:
            outcomes["hang"] += 1
            continue
        if killed.signal == 0:  # the first one also filled caches: this one had fewer operations
            continue
        outcomes[_taken_up(scenario, work, before, wanted)] += 1
    return outcomes


def _taken_up(scenario: Scenario, work: Path, before: Any, wanted: Any) -> str:
    left = _bits(work / scenario.makes)
    if scenario.makes != "run" and left not in (before, wanted):
        return "half of it was left"
    for arguments in scenario.again:
        ended = child(lambda say, a=arguments: _run(a, work, None, say), _PATIENCE_S)
        code = ended.said[-1][0] if ended.said else -1
        if code == 0:
            strays = [p.name for p in work.rglob(".*")]
            if strays:
                return f"left for ever: {strays[0].partition('.part')[0]}"
            return "same bits" if _bits(work / scenario.makes) == wanted else "other bits"
        if code != 1:
            return f"no words but code {code}"
    return "no command goes on"


def _run(arguments: list[str], work: Path, at: int | None, say: Say) -> None:
    """Runs a command in this child, counting its file operations below ``work``."""
    count, inside = [0], str(work.parent)

    def operation() -> None:
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS:
            return
        if event == "ctypes.dlsym":
            if "renameat2" in values:
                operation()
        elif str(values[0] if values else "").startswith(inside) and _writes(event, values):
            operation()

    flush = os.fsync
    os.fsync = lambda handle: (operation(), flush(handle))[1]
    sys.addaudithook(watch)
    say([_call(arguments), count[0]])


def _writes(event: str, values: tuple[Any, ...]) -> bool:
    flags = values[2] if event == "open" and len(values) > 2 else os.O_WRONLY
    return bool(int(flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _call(arguments: list[str]) -> int:
    try:
        app(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        return -1
    return 0


def _bits(path: Path) -> dict[str, str]:
    """Returns what of a result does not depend on when it was made: name -> digest."""
    if path.is_file():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()}
    kept = (".safetensors", "card.json", "pool.json", "splits.json")
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name.endswith(kept)
    }


def _fresh(work: Path, scenario: Scenario) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    scenario.prepare(work)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        shutil.copytree(source, target)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def cache_in(folder: Path) -> Any:
    """Lets everything that is cached be below a folder."""
    before = os.environ.get("MDFT_CACHE")
    os.environ["MDFT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("MDFT_CACHE")
        if before is not None:
            os.environ["MDFT_CACHE"] = before
