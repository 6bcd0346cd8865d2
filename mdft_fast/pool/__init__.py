# SPDX-License-Identifier: Apache-2.0
"""Checkpoints become a verified pool: readers, pack (write), open (read)."""

from mdft_fast.pool.codecs import CodecError
from mdft_fast.pool.head import Head
from mdft_fast.pool.inventory import take_inventory
from mdft_fast.pool.manifest import read_manifest
from mdft_fast.pool.pool import Pool
from mdft_fast.pool.preprocess import Preprocess, as_preprocess, edges_before_crop
from mdft_fast.pool.readers import SourceFacts, State, StateSource, open_state, read_state
from mdft_fast.pool.tasks import TaskInfo, TaskLike

__all__ = [
    "CodecError",
    "Head",
    "Pool",
    "Preprocess",
    "SourceFacts",
    "State",
    "StateSource",
    "TaskInfo",
    "TaskLike",
    "as_preprocess",
    "edges_before_crop",
    "open_state",
    "read_manifest",
    "read_state",
    "take_inventory",
]
