# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: stages, evaluation, files, report."""

from mdft_fast.app.running.progress import Progress
from mdft_fast.app.running.provenance import environment, version_of
from mdft_fast.app.running.run_folder import check_finished
from mdft_fast.app.running.stages import same_task
from mdft_fast.app.running.whole_run import RunSummary, run

__all__ = [
    "Progress",
    "RunSummary",
    "check_finished",
    "environment",
    "run",
    "same_task",
    "version_of",
]
