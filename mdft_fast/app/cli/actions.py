# SPDX-License-Identifier: Apache-2.0
"""What the commands do: each a few calls of the package. Importing this loads torch."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from mdft_fast.app.cli.console import complain, say, show_table, show_wide_table
from mdft_fast.app.demo import default_folder, ensure_pool, is_finished
from mdft_fast.app.forecast import plan, size
from mdft_fast.app.opening import build, choose_device, open_pool, pack, spec_of, specialize_config
from mdft_fast.app.recipe import Recipe, draft, parse, unknown_keys
from mdft_fast.app.report import accuracy_table, write_report
from mdft_fast.app.running import (
    Style,
    check_finished,
    is_claimed,
    locked,
    pool_of_card,
    read_card,
    run,
    same_task,
)
from mdft_fast.cards import CoefficientCard, load, save_model
from mdft_fast.checkpoints import Choice, describe, sniff
from mdft_fast.errors import MdftError, nearest
from mdft_fast.evaluation import evaluate
from mdft_fast.files import write_text
from mdft_fast.learning import specialize
from mdft_fast.methods import METHODS, describe_field, explain_walk, needs, summary
from mdft_fast.model import build_backbone
from mdft_fast.options import options
from mdft_fast.pool import Pool
from mdft_fast.terminal import STOPPED

_OF_STAGE_2 = ("specialize", "memory", "precision", "device", "deterministic", "seed")


def load_recipe(path: Path, assignments: Sequence[str], output: Path | None = None) -> Recipe:
    """Reads a recipe; ``output``, from the command line, starts at the working folder."""
    if output is not None:
        quoted = str(output.absolute()).replace("'", "''")  # YAML's own quotes
        assignments = [*assignments, f"output='{quoted}'"]
    return Recipe.load(path, assignments)


def draft_recipe(folder: Path, target: Path) -> int:
    """Writes a recipe for a folder of checkpoints; returns how often it says CHANGE_ME."""
    text = draft(folder, target)
    write_text(target, text)
    return len(unknown_keys(parse(text)))


def describe_file(path: Path, every: bool, choice: Choice) -> str:
    """Returns what a checkpoint, head, adapter or packed pool is."""
    packed = sniff(path) == "pool"
    return Pool.open(path).describe() if packed else describe(path, every=every, choice=choice)


def pack_pool(
    source: Path,
    folder: Path,
    codec: str | None,
    overwrite: bool,
    start: bool,
    assignments: Sequence[str],
) -> Pool:
    """Packs a recipe's checkpoints, or a packed pool again; returns the new pool, mapped."""
    if folder.exists() and not overwrite:
        raise MdftError(f"{folder}: already exists; --overwrite replaces it")
    if not source.is_dir():
        recipe = load_recipe(source, assignments)
        if recipe.pool.folder is not None:
            _warn_of_rounding(Pool.open(recipe.pool.folder), codec)
        return pack(recipe, folder, codec=codec, overwrite=overwrite, start=start)
    if assignments:
        raise MdftError(f"--set: is for a recipe, got {source}, a folder")
    old = Pool.open(source, verify=True)  # a damaged pool must not come out with new checksums
    _warn_of_rounding(old, codec)
    old.save(folder, codec, overwrite=overwrite)
    return Pool.open(folder)


def show_methods() -> None:
    """Prints the table of methods."""
    for name, method in METHODS.items():
        say(f"{name:<12} {method.kind}: {summary(method)}.")
        for option in options(method):
            say(f"{'':<12} {describe_field(option)}")
        extra = f"; needs {needs(method)}" if method.needs else ""
        say(f"{'':<12} {method.source}{extra}")


def explain_recipe(path: Path, assignments: Sequence[str]) -> str:
    """Returns how methods that look at inputs go through a recipe's backbone; reads no sample."""
    # The base is run alone: what transforms make of the task vectors does not matter.
    backbone, pool = open_pool(load_recipe(path, [*assignments, "transform=[]"]))
    return explain_walk(pool, backbone)


def _warn_of_rounding(old: Pool, codec: str | None) -> None:
    if old.codec != "fp32" and codec not in (None, old.codec):
        complain(
            f"warning: the pool's task vectors are rounded to codec {old.codec!r} already, and "
            f"that error stays; packing the checkpoints in {codec!r} is more accurate"
        )


def plan_recipe(path: Path, assignments: Sequence[str], every_codec: bool) -> None:
    """Prints what a step would take; refuses a recipe that does not fit."""
    planned = plan(load_recipe(path, assignments))
    header, *body = planned.table(every_codec=every_codec)
    show_wide_table(header, body, words=4)
    budget = f"{'budget' if planned.given else 'free for a run'}: {size(planned.budget)}"
    say(f"{planned.samples} images a forward pass; {budget}")
    if planned.start:
        making = "is not counted" if planned.making is None else f"is {size(planned.making)}"
        say(f"start: {planned.start}, one vector more; what making it takes {making}")
    say("again: memory.checkpointing; rest: gradients, activations, workspace; moved: a step's")
    say("traffic of merge and merge_dots; in brackets: not in memory, but in files or on the host")
    if not planned.fits:
        raise MdftError(planned.advice())


def run_recipe(
    path: Path,
    assignments: Sequence[str],
    output: Path | None,
    resume: bool,
    quiet: bool,
    json_log: bool = False,
    verify: bool = True,
) -> None:
    """Runs a recipe and prints what came out; Ctrl-C prints how to go on."""
    recipe = load_recipe(path, assignments, output)
    try:
        style: Style | None = "off" if quiet else "json" if json_log else None
        summary = run(recipe, resume=resume, progress=style, verify=verify)
    except KeyboardInterrupt:
        again = ["mdft", "run", str(path)]
        again += [word for value in assignments for word in ("--set", value)]
        again += ["--output", str(output)] if output is not None else []
        again += [] if verify else ["--no-verify"]
        if is_claimed(recipe.output):  # else nothing has begun
            again.append("--resume")
            complain("stopped; every finished step is saved. Go on with: " + shlex.join(again))
        else:
            complain("stopped before the first step. Begin again with: " + shlex.join(again))
        raise typer.Exit(STOPPED) from None
    if not quiet:
        show_accuracy(summary.result)
        for line in summary.result.get("warnings", ()):
            complain(f"warning: {line}")
    say(f"report: {summary.report}")


def run_demo(assignments: Sequence[str], output: Path, quiet: bool) -> None:
    """Runs the demo's recipe; builds its pool first where there is none."""
    if not quiet and not is_finished(default_folder()):
        complain("building the demo's pool, once")
    pool = ensure_pool(progress=None if quiet else complain)
    assignments = ("specialize.control=true", *assignments)  # what stage 1 is worth to stage 2
    run_recipe(pool / "recipe.yaml", assignments, free_name(output), False, quiet)


def free_name(folder: Path) -> Path:
    """Returns the folder, or the first of ``folder-2``, ``folder-3``, ... that is free."""
    tried, number = folder, 1
    while tried.exists() and (not tried.is_dir() or any(tried.iterdir())):
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


def show_accuracy(result: Mapping[str, Any]) -> None:
    """Prints a result's accuracy table; nothing where nothing was measured."""
    models, rows = accuracy_table(result)
    body = [
        [name, *(f"{100 * values[m.name]:.1f}" if m.name in values else "-" for m in models)]
        for name, values in rows
    ]
    if body:
        show_table(["top-1, %", *(model.short for model in models)], body)


def measure_model(
    model: Path, recipe: Path, assignments: Sequence[str], verify: bool = True
) -> dict[str, float]:
    """Returns a saved model's accuracy on each labelled task of a recipe."""
    built = build(load_recipe(recipe, assignments), verify=verify)
    tasks = [task for task in built.tasks if task.evaluate is not None]
    if not tasks:
        raise MdftError(f"{recipe}: some task must have labelled samples (`evaluate`), got none")
    module: nn.Module
    if model.suffix == ".json":
        card = _read(model)
        pool = pool_of_card(built.recipe, built.pool, card, model)
        module = card.meta_model(pool, built.backbone, built.device)
    else:
        spec = spec_of(built.recipe) or dict(built.pool.backbone_spec)
        with torch.device("cpu"):
            backbone = build_backbone(spec)
        module = load(model, backbone=backbone).to(built.device)
    return evaluate(module, tasks, preprocess=built.pool.preprocess).accuracy


def specialize_run(
    folder: Path, task: str, assignments: Sequence[str], target: Path, verify: bool = True
) -> None:
    """Specializes a run's meta-model to a task, and writes the card."""
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key.partition(".")[0] not in _OF_STAGE_2:
            must = f"must be a key of {list(_OF_STAGE_2)}, got {key!r}; the rest is the run's"
            raise MdftError(f"--set: {must}")
    recipe = load_recipe(_inside(folder, "recipe.yaml"), assignments)
    names = [one.name for one in recipe.tasks]
    if task not in names:
        raise MdftError(f"--task: must be one of {names}, got {task!r}{nearest(task, names)}")
    file = _inside(folder, "meta/card.json")
    with locked(folder):
        built = build(recipe, verify=verify)
        card = _read(file)
        built = dataclasses.replace(built, pool=pool_of_card(recipe, built.pool, card, file))
        meta = card.meta_model(built.pool, built.backbone, built.device)
        specialize(meta, same_task(folder, built, meta, task), specialize_config(recipe))
        about = {"stage": "specialize", "preset": recipe.preset, "seed": recipe.seed, "task": task}
        CoefficientCard.of(meta, about).save(target)


def report_run(folder: Path) -> Path:
    """Writes a run's report again; returns the path of ``report.md``."""
    check_finished(folder)
    with locked(folder):
        return write_report(folder)


def export_model(
    source: Path, to: Path, task: str | None, recipe: Path | None, verify: bool = True
) -> None:
    """Writes the merged weights of a card, or of a run's meta or specialized model."""
    if source.is_dir():
        file = _inside(source, f"specialized/{task}/card.json" if task else "meta/card.json")
    elif task:
        raise MdftError(f"--task: is for a run folder, got {source}")
    else:
        file = source
    card = _read(file)
    opened = load_recipe(recipe or _recipe_of(file), ())
    backbone, pool = open_pool(opened, verify=verify)
    pool = pool_of_card(opened, pool, card, file)
    save_model(card.meta_model(pool, backbone, choose_device(opened.device)), to)


def _read(file: Path) -> CoefficientCard:
    """Reads a card, and says what should be known of its file."""
    card = read_card(file)
    for note in card.notes:
        complain(f"note: {note}")
    return card


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        check_finished(folder)
        raise MdftError(f"{folder}: must hold {name}, got none; is it a finished run's folder?")
    return path


def _recipe_of(card: Path) -> Path:
    for folder in card.absolute().parents:
        if (folder / "recipe.yaml").is_file():
            return folder / "recipe.yaml"
    raise MdftError(f"{card}: no recipe.yaml in the folders above; name it with --recipe")
