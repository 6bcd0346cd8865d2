# SPDX-License-Identifier: Apache-2.0
"""What can be said of models that are there. Reads results, never changes them.

Labels are read here for evaluation alone.
"""

from mdft_fast.analysis.cka import linear_cka, unbiased_hsic
from mdft_fast.analysis.drop import Drop, accuracy_drop
from mdft_fast.analysis.entropy import entropy_and_loss, spearman
from mdft_fast.analysis.layers import LayerReader

__all__ = [
    "Drop",
    "LayerReader",
    "accuracy_drop",
    "entropy_and_loss",
    "linear_cka",
    "spearman",
    "unbiased_hsic",
]
