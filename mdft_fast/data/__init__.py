# SPDX-License-Identifier: Apache-2.0
"""Tasks, unlabelled batches and their order. Labels are read through ``load_labelled`` alone."""

from mdft_fast.data.folders import SPLITS, FolderSource, listed
from mdft_fast.data.hf import HfSource
from mdft_fast.data.listing import ListedSource, Listing, check_class_names, compare_class_names
from mdft_fast.data.order import BatchOrder, split
from mdft_fast.data.overlap import shared_images, unshared
from mdft_fast.data.samples import (
    Samples,
    load_labelled,
    load_samples,
    load_test_images,
    read_labels,
)
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
from mdft_fast.data.torchvision_sets import TORCHVISION_SETS, TorchvisionSource
from mdft_fast.pool import Head

__all__ = [
    "SPLITS",
    "TORCHVISION_SETS",
    "BatchOrder",
    "FolderSource",
    "Head",
    "HfSource",
    "LabelledSource",
    "ListedSource",
    "Listing",
    "NpzSource",
    "Samples",
    "Source",
    "Task",
    "TorchvisionSource",
    "check_class_names",
    "check_npz_keys",
    "compare_class_names",
    "listed",
    "load_labelled",
    "load_samples",
    "load_test_images",
    "npz_keys",
    "read_class_names",
    "read_labels",
    "read_npz",
    "shared_images",
    "split",
    "unshared",
]
