# SPDX-License-Identifier: Apache-2.0
"""The meta-model: backbone, pool and λ."""

from mdft_fast.model.advice import return_freed_memory
from mdft_fast.model.backbones import build_backbone
from mdft_fast.model.granularity import Granularity, group_columns
from mdft_fast.model.meta_model import (
    DTYPE_OF_PRECISION,
    MODES,
    MetaModel,
    Mode,
    Precision,
)

__all__ = [
    "DTYPE_OF_PRECISION",
    "MODES",
    "Granularity",
    "MetaModel",
    "Mode",
    "Precision",
    "build_backbone",
    "group_columns",
    "return_freed_memory",
]
