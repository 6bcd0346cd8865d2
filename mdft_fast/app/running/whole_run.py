# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: stages, evaluation, files, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mdft_fast.app.forecast import MemoryPlan, explained, plan, size
from mdft_fast.app.opening import Built, LoadedData, build, choose_device, load_data, start_of
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import write_report
from mdft_fast.app.running.measurement import measure
from mdft_fast.app.running.phases import Phases, deterministic
from mdft_fast.app.running.progress import Progress, Style, span
from mdft_fast.app.running.result_content import result_of
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.app.running.stages import Learned, ask_teachers, learn
from mdft_fast.app.running.start_file import make_start
from mdft_fast.app.running.step_logs import check_log, events_of, write_table
from mdft_fast.app.running.vector_shares import vector_shares
from mdft_fast.cache import cache_limit
from mdft_fast.cards import CoefficientCard, save_model
from mdft_fast.errors import MdftError
from mdft_fast.files import write_json
from mdft_fast.json_checksums import with_checksum
from mdft_fast.learning import StepRecord
from mdft_fast.model import MetaModel


@dataclasses.dataclass(frozen=True, eq=False)
class RunSummary:
    """What :func:`run` gives.

    Attributes:
        folder: where everything was written.
        result: the content of ``result.json``.
        report: the report's file.
    """

    folder: Path
    result: dict[str, Any]
    report: Path


def run(
    recipe: Recipe, *, resume: bool = False, progress: Style | None = None, verify: bool = True
) -> RunSummary:
    """Runs a recipe and writes its run folder.

    λ is learned first, from tasks that hold no labels; only then are labelled samples opened.

    Args:
        recipe: what to do, see ``docs/recipes.md``.
        resume: goes on with a stopped run of the same recipe, bit for bit.
        progress: how it tells on standard error how far it is: "bars", "lines", one JSON object a
            line ("json"), or "off"; None: bars on a terminal, else lines.
        verify: of a packed pool, compares its content with its checksums before it is used.

    Raises:
        MdftError: if anything in the recipe does not fit, or the folder is in use.
    """
    check_log(recipe.log)
    cache_limit()  # what it cannot be is said now
    with RunFolder(recipe.output, recipe, resume=resume) as folder, Progress(progress) as bars:
        bars.say(f"writing to {folder.path}")
        phases = Phases(choose_device(recipe.device), bars.phase)
        with phases.phase("plan"):
            planned = plan(recipe, every=False)
            _check_fits(recipe, planned, bars)
        with phases.phase("load and pack"):
            built = build(recipe, verify=verify)
            for note in built.pool.notes:
                bars.say(note)
        with phases.phase("samples"):
            data = load_data(built, bars.count)
        with deterministic(recipe.deterministic, built.device), explained(recipe):
            with phases.phase("teachers"):
                teachers = built.meta_model(planned.chosen.mode, teachers=True)
                data, taught = ask_teachers(built, teachers, data, bars)
                del teachers
            for note in data.notes:
                bars.say(note)
            built = _started(built, data, folder, phases, bars)
            taught = [dataclasses.replace(task, pool=built.pool.checksum) for task in taught]
            meta = built.meta_model(planned.chosen.mode)
            with events_of(folder.path, recipe.log == "tensorboard") as events:

                def tell(name: str, record: StepRecord) -> None:
                    bars.step(name, record)
                    events.step(name, record)

                learned = learn(built, data, taught, meta, folder, phases, tell)
            write_table(folder.path)
            _save(built, meta, folder.path, learned)
            with phases.phase("evaluate"):
                measured = measure(built, meta, learned, taught, bars.count)
                shares = vector_shares(meta, learned) if built.pool.start is not None else None
        result = result_of(built, data, learned, taught, measured, phases, folder, shares)
        write_json(folder.path / "result.json", with_checksum(result))
        report = write_report(folder.path)
        bars.say(f"done in {span(sum(phase['seconds'] for phase in phases.list))}: {report}")
    return RunSummary(folder.path, result, report)


def _started(
    built: Built, data: LoadedData, folder: RunFolder, phases: Phases, bars: Progress
) -> Built:
    """Returns the models with the recipe's start, where it has one and the pool has not."""
    start = start_of(built.recipe)
    if start is None or built.pool.start is not None:
        return built
    with phases.phase("start"):
        bars.say(f"start: {start}, from which λ is learned")
        pool = make_start(built, data, folder, lambda done, total: bars.count("start", done, total))
        for note in pool.notes[len(built.pool.notes) :]:
            bars.say(note)
    return dataclasses.replace(built, pool=pool)


def _check_fits(recipe: Recipe, planned: MemoryPlan, bars: Progress) -> None:
    """Says what will be taken; refuses what cannot fit, unless the recipe names the mode itself."""
    row = planned.chosen
    bars.say(f"memory: {row.mode}, about {size(row.peak)} at the peak of a step")
    if planned.fits:
        return
    advice = plan(recipe).advice()
    if planned.given or recipe.memory.mode == "auto":
        raise MdftError(f"memory: {advice}")
    bars.say(f"memory: {advice}")


def _save(built: Built, meta: MetaModel, folder: Path, learned: Learned) -> None:
    """Writes the cards, and the meta-model's weights. A specialized one is `mdft export`'s."""
    about = {"stage": "construct", "preset": built.recipe.preset, "seed": built.recipe.seed}
    CoefficientCard.of(meta, about).save(folder / "meta" / "card.json")
    save_model(meta, folder / "meta" / "model.safetensors")
    for name, result in learned.specialize.items():
        with meta.using(result.coefficients):
            card = CoefficientCard.of(meta, {**about, "stage": "specialize", "task": name})
        card.save(folder / "specialized" / name / "card.json")
