# SPDX-License-Identifier: Apache-2.0
"""A run's cards: each is of the stage and task that its place in the folder says."""

from __future__ import annotations

from pathlib import Path

from mdft_fast.app.running.run_folder import is_claimed
from mdft_fast.cards import CoefficientCard
from mdft_fast.errors import MdftError


def read_card(file: Path) -> CoefficientCard:
    """Reads a card; in a run folder it must be of the stage and task that belong there.

    Raises:
        MdftError: if the file is no card, is damaged, or is another stage's or task's.
    """
    card = CoefficientCard.load(file)
    wanted, got = _owner(file.absolute()), (card.about.get("stage"), card.about.get("task"))
    if wanted is not None and got != wanted:
        raise MdftError(
            f"{file}: must be the card of {_words(*wanted)}, got that of {_words(*got)}"
        )
    return card


def _owner(file: Path) -> tuple[str, str | None] | None:
    """Returns stage and task of a file's place in a run folder; None where it lies in none."""
    place, above = file.parent, file.parent.parent
    if place.name == "meta" and is_claimed(above):
        return "construct", None
    if above.name == "specialized" and is_claimed(above.parent):
        return "specialize", place.name
    return None


def _words(stage: object, task: object) -> str:
    return f"stage {stage!r}" if task is None else f"stage {stage!r}, task {task!r}"
