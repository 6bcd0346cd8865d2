# SPDX-License-Identifier: Apache-2.0
"""The operators: usable alone, in anyone's own model."""

from mdft_fast.ops._debiased_entropy import DebiasedEntropyFunction, debiased_entropy_loss
from mdft_fast.ops._library import kernels
from mdft_fast.ops._merge import MergeFunction, merge, merge_tensors
from mdft_fast.ops._merge_dots import merge_dots

__all__ = [
    "DebiasedEntropyFunction",
    "MergeFunction",
    "debiased_entropy_loss",
    "kernels",
    "merge",
    "merge_dots",
    "merge_tensors",
]
