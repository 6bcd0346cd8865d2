# SPDX-License-Identifier: Apache-2.0
"""What can be said of models that are there. Reads results, never changes them.

Labels are read here for evaluation alone.
"""

from benchmarks.paper.analysis.cka import linear_cka, unbiased_hsic
from benchmarks.paper.analysis.drop import Drop, accuracy_drop
from benchmarks.paper.analysis.entropy_ranking import entropy_and_loss, spearman
from benchmarks.paper.analysis.layers import OUTPUT, LayerReader

__all__ = [
    "OUTPUT",
    "Drop",
    "LayerReader",
    "accuracy_drop",
    "entropy_and_loss",
    "linear_cka",
    "spearman",
    "unbiased_hsic",
]
