# SPDX-License-Identifier: Apache-2.0
"""Tasks and their samples.

Labels are read by :func:`load_labelled` and :func:`read_labels` alone: for an evaluation, and for
heads that labels make.
"""

from mdft_fast.data.image_cache import Choose, forget_verified
from mdft_fast.data.images.class_folders import FolderSource, Order, listed
from mdft_fast.data.images.decoding import readable
from mdft_fast.data.images.hf_datasets import HfSource
from mdft_fast.data.images.listing import (
    ListedSource,
    Listing,
    Role,
    compare_class_names,
    plain_name,
)
from mdft_fast.data.images.sources import (
    LabelledSource,
    NpzSource,
    Source,
    check_npz,
    npz_keys,
    read_class_names,
)
from mdft_fast.data.images.split_names import Split
from mdft_fast.data.images.torchvision_sets import TORCHVISION_SETS, TorchvisionSource
from mdft_fast.data.overlap import shared_images, unshared
from mdft_fast.data.samples import (
    Samples,
    load_labelled,
    load_samples,
    load_test_images,
    read_labels,
)
from mdft_fast.data.task import Task

__all__ = [
    "TORCHVISION_SETS", "Choose", "FolderSource", "HfSource", "LabelledSource", "ListedSource",
    "Listing", "NpzSource", "Order", "Role", "Samples", "Source", "Split", "Task",
    "TorchvisionSource", "check_npz", "compare_class_names", "forget_verified", "listed",
    "load_labelled", "load_samples", "load_test_images", "npz_keys", "plain_name",
    "read_class_names", "read_labels", "readable", "shared_images", "unshared",
]  # fmt: skip
