# SPDX-License-Identifier: Apache-2.0
"""What can be made of a pool without learning: one file a method, one table."""

from mdft_fast.methods.applying import apply
from mdft_fast.methods.aswudi import Aswudi
from mdft_fast.methods.average import Average
from mdft_fast.methods.bitdelta import Bitdelta
from mdft_fast.methods.breadcrumbs import Breadcrumbs
from mdft_fast.methods.calibrate import Calibrate
from mdft_fast.methods.compeft import Compeft
from mdft_fast.methods.consensus import Consensus
from mdft_fast.methods.dare import Dare
from mdft_fast.methods.della import Della
from mdft_fast.methods.fisher import Fisher
from mdft_fast.methods.greedy_soup import GreedySoup
from mdft_fast.methods.half import Half
from mdft_fast.methods.inputs import SamplesToLearn, TaskInputs
from mdft_fast.methods.iso_c import IsoC
from mdft_fast.methods.iso_cts import IsoCts
from mdft_fast.methods.largest import kth_largest
from mdft_fast.methods.lines import Lines
from mdft_fast.methods.lowrank import Lowrank
from mdft_fast.methods.mask import Mask
from mdft_fast.methods.method import (
    InputMerge,
    MatrixMerge,
    Merge,
    Method,
    Site,
    Transform,
    Vectors,
    Watch,
    mean_of,
    sum_of,
)
from mdft_fast.methods.model_stock import ModelStock
from mdft_fast.methods.negmerge import Negmerge
from mdft_fast.methods.pcb import Pcb
from mdft_fast.methods.regmean import Regmean
from mdft_fast.methods.regmean_pp import RegmeanPp
from mdft_fast.methods.sign import Sign
from mdft_fast.methods.start import Start, merge_of
from mdft_fast.methods.table import describe_field, entry_of, method_of, needs, page, summary
from mdft_fast.methods.task_arithmetic import TaskArithmetic
from mdft_fast.methods.ties import Ties
from mdft_fast.methods.ties_merge import TiesMerge
from mdft_fast.methods.tsv_m import TsvM
from mdft_fast.methods.walk import explain_walk
from mdft_fast.methods.wudi import Wudi

# The table: recipes, `mdft methods` and docs know what stands here, in this order.
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Ties,
        Lines,
        Fisher,
        Regmean,
        RegmeanPp,
        Calibrate,
        Average,
        TaskArithmetic,
        ModelStock,
        TsvM,
        IsoC,
        IsoCts,
        Wudi,
        Aswudi,
        GreedySoup,
        Dare,
        Della,
        Breadcrumbs,
        Negmerge,
        Compeft,
        Consensus,
        Pcb,
        Half,
        Mask,
        Lowrank,
        Bitdelta,
        Sign,
        TiesMerge,
    )
}

Start.table = METHODS

__all__ = [
    "METHODS",
    "Aswudi",
    "Average",
    "Bitdelta",
    "Breadcrumbs",
    "Calibrate",
    "Compeft",
    "Consensus",
    "Dare",
    "Della",
    "Fisher",
    "GreedySoup",
    "Half",
    "InputMerge",
    "IsoC",
    "IsoCts",
    "Lines",
    "Lowrank",
    "Mask",
    "MatrixMerge",
    "Merge",
    "Method",
    "ModelStock",
    "Negmerge",
    "Pcb",
    "Regmean",
    "RegmeanPp",
    "SamplesToLearn",
    "Sign",
    "Site",
    "Start",
    "TaskArithmetic",
    "TaskInputs",
    "Ties",
    "TiesMerge",
    "Transform",
    "TsvM",
    "Vectors",
    "Watch",
    "Wudi",
    "apply",
    "describe_field",
    "entry_of",
    "explain_walk",
    "kth_largest",
    "mean_of",
    "merge_of",
    "method_of",
    "needs",
    "page",
    "sum_of",
    "summary",
]
