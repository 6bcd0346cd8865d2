# SPDX-License-Identifier: Apache-2.0
"""The meta-model: backbone, pool and λ."""

from mdft_fast.model.backbones import build_backbone
from mdft_fast.model.granularity import Granularity, group_columns
from mdft_fast.model.meta_model import MetaModel

__all__ = ["Granularity", "MetaModel", "build_backbone", "group_columns"]
