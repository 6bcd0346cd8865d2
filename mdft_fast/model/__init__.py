# SPDX-License-Identifier: Apache-2.0
"""The meta-model: backbone, pool and λ."""

from mdft_fast.checkpoints import Batch
from mdft_fast.model.backbones.builders import build_backbone, without_alarm
from mdft_fast.model.backbones.recognition import Recognized, recognize
from mdft_fast.model.batches import each, joined, tensors_of
from mdft_fast.model.granularity import Granularity, block_of
from mdft_fast.model.memory_advice import return_freed_memory
from mdft_fast.model.meta_model import (
    DTYPE_OF_PRECISION,
    MODES,
    TASK_ARITHMETIC,
    MetaModel,
    Mode,
    Precision,
)
from mdft_fast.model.partition import find_blocks, names_of
from mdft_fast.model.placeholders import check_shapes

__all__ = [
    "DTYPE_OF_PRECISION", "MODES", "TASK_ARITHMETIC", "Batch", "Granularity", "MetaModel", "Mode",
    "Precision", "Recognized", "block_of", "build_backbone", "check_shapes", "each", "find_blocks",
    "joined", "names_of", "recognize", "return_freed_memory", "tensors_of",
    "without_alarm",
]  # fmt: skip
