# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: stages, evaluation, files, report."""

from mdft_fast.app.running.folder_lock import locked
from mdft_fast.app.running.phases import Phases
from mdft_fast.app.running.progress import Progress, Style
from mdft_fast.app.running.provenance import environment, version_of
from mdft_fast.app.running.run_cards import read_card
from mdft_fast.app.running.run_folder import check_finished, is_claimed
from mdft_fast.app.running.stages import same_task
from mdft_fast.app.running.start_file import pool_of_card
from mdft_fast.app.running.whole_run import RunSummary, run

__all__ = [
    "Phases",
    "Progress",
    "RunSummary",
    "Style",
    "check_finished",
    "environment",
    "is_claimed",
    "locked",
    "pool_of_card",
    "read_card",
    "run",
    "same_task",
    "version_of",
]
