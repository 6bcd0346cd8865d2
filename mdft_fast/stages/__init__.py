# SPDX-License-Identifier: Apache-2.0
"""The two stages: one loop each, in the paper's order."""

from mdft_fast.stages.config import ConstructConfig, OptimizerConfig, Schedule, SpecializeConfig
from mdft_fast.stages.construct import construct
from mdft_fast.stages.learner import Callback, Learner, RunResult, StepRecord
from mdft_fast.stages.specialize import specialize
from mdft_fast.stages.teachers import TaughtTask, holdout_cross_entropy, teach

__all__ = [
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
    "teach",
]
