# SPDX-License-Identifier: Apache-2.0
"""Heads that are made: from class names (zero-shot) or from labelled images (prototypes)."""

from mdft_fast.heads.head_cache import cached_head, file_digest, head_digest
from mdft_fast.heads.prototypes import prototype_head
from mdft_fast.heads.vocabulary import (
    DATASETS,
    check_order,
    class_labels,
    class_names,
    is_dataset,
    templates,
)
from mdft_fast.heads.zero_shot import clip_config, load_clip, zero_shot_head

__all__ = [
    "DATASETS", "cached_head", "check_order", "class_labels", "class_names",
    "clip_config", "file_digest", "head_digest", "is_dataset", "load_clip", "prototype_head",
    "templates", "zero_shot_head",
]  # fmt: skip
