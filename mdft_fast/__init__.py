# SPDX-License-Identifier: Apache-2.0
"""mdft_fast: turn a pool of fine-tuned models into one better model, without labels."""

from mdft_fast.errors import MdftError, MdftFallbackWarning
from mdft_fast.ops import (
    DebiasedEntropyFunction,
    MergeFunction,
    debiased_entropy_loss,
    kernels,
    merge,
    merge_dots,
    merge_tensors,
)

__version__ = "0.1.0"
__all__ = [
    "DebiasedEntropyFunction",
    "MdftError",
    "MdftFallbackWarning",
    "MergeFunction",
    "debiased_entropy_loss",
    "kernels",
    "merge",
    "merge_dots",
    "merge_tensors",
]
