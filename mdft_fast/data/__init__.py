# SPDX-License-Identifier: Apache-2.0
"""Tasks, unlabelled batches and their order. Labels are read through ``load_labelled`` alone."""

from mdft_fast.data.order import BatchOrder, split
from mdft_fast.data.samples import Samples, load_labelled, load_samples
from mdft_fast.data.sources import (
    LabelledSource,
    NpzSource,
    Source,
    check_npz_keys,
    npz_keys,
    read_class_names,
    read_npz,
)
from mdft_fast.data.task import Task
from mdft_fast.pool import Head

__all__ = [
    "BatchOrder",
    "Head",
    "LabelledSource",
    "NpzSource",
    "Samples",
    "Source",
    "Task",
    "check_npz_keys",
    "load_labelled",
    "load_samples",
    "npz_keys",
    "read_class_names",
    "read_npz",
    "split",
]
