# SPDX-License-Identifier: Apache-2.0
"""What can be made of a pool without learning: one file a method, one table."""

from mdft_fast.methods.applying import apply
from mdft_fast.methods.calibrate import Calibrate
from mdft_fast.methods.fisher import Fisher
from mdft_fast.methods.inputs import SamplesToLearn, TaskInputs
from mdft_fast.methods.largest import kth_largest
from mdft_fast.methods.lines import Lines
from mdft_fast.methods.method import (
    InputMerge,
    MatrixMerge,
    Merge,
    Method,
    Site,
    Transform,
    Vectors,
    mean_of,
)
from mdft_fast.methods.regmean import RegMean
from mdft_fast.methods.regmean_pp import RegMeanPP
from mdft_fast.methods.table import describe_field, entry_of, method_of, needs, page, summary
from mdft_fast.methods.ties import Ties
from mdft_fast.methods.walk import explain_walk

# The table: recipes, `mdft methods` and docs know what stands here, in this order.
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Ties,
        Lines,
        Fisher,
        RegMean,
        RegMeanPP,
        Calibrate,
    )
}

__all__ = [
    "METHODS",
    "Calibrate",
    "Fisher",
    "InputMerge",
    "Lines",
    "MatrixMerge",
    "Merge",
    "Method",
    "RegMean",
    "RegMeanPP",
    "SamplesToLearn",
    "Site",
    "TaskInputs",
    "Ties",
    "Transform",
    "Vectors",
    "apply",
    "describe_field",
    "entry_of",
    "explain_walk",
    "kth_largest",
    "mean_of",
    "method_of",
    "needs",
    "page",
    "summary",
]
