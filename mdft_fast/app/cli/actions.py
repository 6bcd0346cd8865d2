# SPDX-License-Identifier: Apache-2.0
"""What the commands do with models: each a few calls of the public API."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mdft_fast.app.cli.console import STOPPED, check_free, complain, say, show_accuracy
from mdft_fast.app.recipe import Recipe
from mdft_fast.errors import MdftError, nearest

if TYPE_CHECKING:
    from mdft_fast.pool import Pool

_OF_STAGE_2 = ("specialize", "memory", "precision", "device", "deterministic", "seed")


def load_recipe(path: Path, assignments: Sequence[str], output: Path | None = None) -> Recipe:
    """Reads a recipe; ``output``, from the command line, starts at the working folder."""
    if output is not None:
        assignments = [*assignments, f"output={_quoted(output.absolute())}"]
    return Recipe.load(path, assignments)


def run_recipe(
    path: Path, assignments: Sequence[str], output: Path | None, resume: bool, quiet: bool
) -> None:
    """Runs a recipe and prints what came out; Ctrl-C prints how to go on."""
    from mdft_fast.app.running import run

    recipe = load_recipe(path, assignments, output)
    try:
        summary = run(recipe, resume=resume, progress=False if quiet else None)
    except KeyboardInterrupt:
        again = ["mdft", "run", str(path)]
        again += [word for value in assignments for word in ("--set", value)]
        again += ["--output", str(output)] if output is not None else []
        if (recipe.output / "splits.json").exists():  # else nothing has begun
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


def pack_pool(
    source: Path, folder: Path, codec: str | None, overwrite: bool, assignments: Sequence[str]
) -> Pool:
    """Packs a recipe's checkpoints, or a packed pool again; returns the new pool, mapped."""
    from mdft_fast.app.opening import pack
    from mdft_fast.pool import Pool

    if folder.exists() and not overwrite:
        raise MdftError(f"{folder}: already exists; --overwrite replaces it")
    if not source.is_dir():
        recipe = load_recipe(source, assignments)
        if recipe.pool.folder is not None:
            _warn_of_rounding(Pool.open(recipe.pool.folder), codec)
        return pack(recipe, folder, codec=codec, overwrite=overwrite)
    if assignments:
        raise MdftError(f"--set: is for a recipe, got {source}, a folder")
    old = Pool.open(source, verify=True)  # a damaged pool must not come out with new checksums
    _warn_of_rounding(old, codec)
    old.save(folder, codec, overwrite=overwrite)
    return Pool.open(folder)


def _warn_of_rounding(old: Pool, codec: str | None) -> None:
    if old.codec != "fp32" and codec not in (None, old.codec):
        complain(
            f"warning: the pool's task vectors are rounded to codec {old.codec!r} already, and "
            f"that error stays; packing the checkpoints in {codec!r} is more accurate"
        )


def measure_model(model: Path, recipe: Path, assignments: Sequence[str]) -> dict[str, float]:
    """Returns a saved model's accuracy on each labelled task of a recipe."""
    from mdft_fast.app.opening import build, spec_of
    from mdft_fast.cards import CoefficientCard, load
    from mdft_fast.evaluation import evaluate
    from mdft_fast.model import build_backbone

    built = build(load_recipe(recipe, assignments))
    tasks = [task for task in built.tasks if task.evaluate is not None]
    if not tasks:
        raise MdftError(f"{recipe}: some task must have labelled samples (`evaluate`), got none")
    module: Any
    if model.suffix == ".json":
        card = CoefficientCard.load(model)
        module = card.meta_model(built.pool, built.backbone, built.device)
    else:
        spec = spec_of(built.recipe) or dict(built.pool.backbone_spec)
        module = load(model, backbone=build_backbone(spec)).to(built.device)
    return evaluate(module, tasks, preprocess=built.pool.preprocess).accuracy


def specialize_run(folder: Path, task: str, assignments: Sequence[str], overwrite: bool) -> Path:
    """Specializes a run's meta-model to a task; returns the card's path."""
    from mdft_fast.app.opening import build, specialize_config
    from mdft_fast.app.running import same_task
    from mdft_fast.cards import CoefficientCard
    from mdft_fast.learning import specialize

    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key.partition(".")[0] not in _OF_STAGE_2:
            wanted = f"must be a key of {list(_OF_STAGE_2)}, got {key!r}; the rest is the run's"
            raise MdftError(f"--set: {wanted}")
    target = folder / "specialized" / task / "card.json"
    check_free(target, overwrite)
    recipe = load_recipe(_inside(folder, "recipe.yaml"), assignments)
    names = [known.name for known in recipe.tasks]
    if task not in names:
        raise MdftError(f"--task: must be one of {names}, got {task!r}{nearest(task, names)}")
    built = build(recipe)
    card = CoefficientCard.load(_inside(folder, "meta/card.json"))
    meta = card.meta_model(built.pool, built.backbone, built.device)
    config = specialize_config(recipe)
    taught = same_task(folder, built, meta, task)
    specialize(meta, taught, config)
    about = {"stage": "specialize", "preset": recipe.preset, "seed": recipe.seed, "task": task}
    CoefficientCard.of(meta, about).save(target)
    return target


def report_run(folder: Path) -> Path:
    """Writes a run's report again; returns the path of ``report.md``."""
    from mdft_fast.app.report import write_report
    from mdft_fast.app.running import check_finished

    check_finished(folder)
    return write_report(folder)


def export_model(
    source: Path, to: Path, task: str | None, recipe: Path | None, overwrite: bool
) -> None:
    """Writes the merged weights of a card, or of a run's meta or specialized model."""
    from mdft_fast.app.opening import choose_device, open_pool
    from mdft_fast.cards import CoefficientCard, save_model

    if to.suffix != ".safetensors":
        raise MdftError(f"--to: must be a .safetensors file, got {to}")
    check_free(to, overwrite)
    if source.is_dir():
        file = _inside(source, f"specialized/{task}/card.json" if task else "meta/card.json")
    elif task:
        raise MdftError(f"--task: is for a run folder, got {source}")
    else:
        file = source
    card = CoefficientCard.load(file)
    opened = load_recipe(recipe or _recipe_of(file), ())
    backbone, pool = open_pool(opened)
    save_model(card.meta_model(pool, backbone, choose_device(opened.device)), to)


def free_name(folder: Path) -> Path:
    """Returns the folder, or the first of ``folder-2``, ``folder-3``, ... that is free."""
    tried, number = folder, 1
    while tried.exists() and (not tried.is_dir() or any(tried.iterdir())):
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"  # YAML's own quotes


def _inside(folder: Path, name: str) -> Path:
    from mdft_fast.app.running import check_finished

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
