# SPDX-License-Identifier: Apache-2.0
"""λ by gradient: the two stages."""

from mdft_fast.learning.config import ConstructConfig, OptimizerConfig, Schedule, SpecializeConfig
from mdft_fast.learning.construction import construct
from mdft_fast.learning.learner import Callback, Learner, RunResult, StepRecord
from mdft_fast.learning.order import BatchOrder, split
from mdft_fast.learning.specialization import specialize
from mdft_fast.learning.teachers import TaughtTask, holdout_cross_entropy, teach

__all__ = [
    "BatchOrder",
    "Callback",
    "ConstructConfig",
    "Learner",
    "OptimizerConfig",
    "RunResult",
    "Schedule",
    "SpecializeConfig",
    "StepRecord",
    "TaughtTask",
    "construct",
    "holdout_cross_entropy",
    "specialize",
    "split",
    "teach",
]
