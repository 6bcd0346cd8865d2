# SPDX-License-Identifier: Apache-2.0
"""Any file or folder becomes named tensors, and what it says about itself. Executes nothing."""

from mdft_fast.checkpoints.activation import activation_of, check_activation
from mdft_fast.checkpoints.architecture import check_architecture, compare_bases
from mdft_fast.checkpoints.conversion import Dtype, convert, describe
from mdft_fast.checkpoints.file_kinds import CLIP_CONFIG, CONFIG, read_json, sniff
from mdft_fast.checkpoints.metadata import OTHER, SourceFacts, check_preprocess, gather
from mdft_fast.checkpoints.opening import as_state, open_state
from mdft_fast.checkpoints.parts import Choice, Weights
from mdft_fast.checkpoints.preprocess import (
    LEAST_CROP,
    Batch,
    Interpolation,
    Preprocess,
    Resize,
    arguments_of,
    as_preprocess,
    describe_preprocess,
    edges_before_crop,
    example_input,
)
from mdft_fast.checkpoints.safetensors_writer import Entry, Written, entry, write_tensors
from mdft_fast.checkpoints.state import State, StateSource, renamed
from mdft_fast.checkpoints.task_files import (
    SUFFIXES,
    deeper_ones,
    find_checkpoint,
    find_tasks,
    stem_of,
)
from mdft_fast.checkpoints.tensor_cache import cached_tensors
from mdft_fast.checkpoints.torch_content import text_tower

__all__ = [
    "CLIP_CONFIG", "CONFIG", "LEAST_CROP", "OTHER", "SUFFIXES", "Batch", "Choice",
    "Dtype", "Entry", "Interpolation", "Preprocess", "Resize", "SourceFacts", "State",
    "StateSource", "Weights", "Written", "activation_of", "arguments_of", "as_preprocess",
    "as_state", "cached_tensors", "check_activation", "check_architecture", "check_preprocess",
    "compare_bases", "convert", "deeper_ones", "describe", "describe_preprocess",
    "edges_before_crop", "entry", "example_input", "find_checkpoint", "find_tasks", "gather",
    "open_state", "read_json", "renamed", "sniff", "stem_of", "text_tower", "write_tensors",
]  # fmt: skip
