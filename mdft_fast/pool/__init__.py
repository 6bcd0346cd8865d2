# SPDX-License-Identifier: Apache-2.0
"""Checkpoints become a verified pool: packing, saving, opening."""

from mdft_fast.pool.consensus_start import start_entry
from mdft_fast.pool.head import Head, label_note
from mdft_fast.pool.inventory import take_inventory
from mdft_fast.pool.manifest import Manifest, read_manifest
from mdft_fast.pool.name_fitting import check_fits, fit
from mdft_fast.pool.packing import Buffers, Packing
from mdft_fast.pool.pool import Pool
from mdft_fast.pool.task_checks import (
    TASK_NAME_FORM,
    TaskInfo,
    TaskLike,
    check_classes,
    check_features,
    check_task_name,
    check_tasks,
    features_of,
    is_task_name,
)

__all__ = [
    "TASK_NAME_FORM", "Buffers", "Head", "Manifest", "Packing", "Pool", "TaskInfo", "TaskLike",
    "check_classes", "check_features", "check_fits", "check_task_name", "check_tasks",
    "features_of", "fit", "is_task_name", "label_note", "read_manifest", "start_entry",
    "take_inventory",
]  # fmt: skip
