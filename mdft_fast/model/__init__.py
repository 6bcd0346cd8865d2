# SPDX-License-Identifier: Apache-2.0
"""The meta-model: backbone, pool and λ."""

from mdft_fast.checkpoints import Batch
from mdft_fast.model.backbones.builders import Held, build_backbone, in_float32, without_alarm
from mdft_fast.model.backbones.recognition import Recognized, recognize
from mdft_fast.model.batches import each, joined, tensors_of
from mdft_fast.model.granularity import Granularity, block_of
from mdft_fast.model.initial_coefficients import TASK_ARITHMETIC, StartLike
from mdft_fast.model.linear_layers import LinearLayer, find_linear_layers
from mdft_fast.model.memory_advice import available_memory, return_freed_memory, trim_heaps
from mdft_fast.model.meta_model import (
    DTYPE_OF_PRECISION,
    MODES,
    MetaModel,
    Mode,
    Precision,
)
from mdft_fast.model.partition import find_blocks, find_owners, names_of, replaced_forward
from mdft_fast.model.placeholders import check_shapes
from mdft_fast.model.unlabelled import (
    HOLDOUT,
    Samples,
    UnlabelledTask,
    VariedSamples,
    batches_of,
    generator_of,
    permutation,
    split,
)

__all__ = [
    "DTYPE_OF_PRECISION", "HOLDOUT", "MODES", "TASK_ARITHMETIC", "Batch", "Granularity", "Held",
    "LinearLayer", "MetaModel", "Mode", "Precision", "Recognized", "Samples", "StartLike",
    "UnlabelledTask", "VariedSamples", "available_memory", "batches_of", "block_of",
    "build_backbone", "check_shapes", "each", "find_blocks", "find_linear_layers", "find_owners",
    "generator_of", "in_float32", "joined", "names_of", "permutation", "recognize",
    "replaced_forward", "return_freed_memory", "split", "tensors_of", "trim_heaps", "without_alarm",
]  # fmt: skip
