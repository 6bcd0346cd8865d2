# SPDX-License-Identifier: Apache-2.0
"""λ by gradient: the two stages."""

from mdft_fast.learning.config import (
    ConstructConfig,
    OptimizerConfig,
    Schedule,
    SpecializeConfig,
    StageConfig,
)
from mdft_fast.learning.cuda_graph import check_capturable_mode
from mdft_fast.learning.learner import Callback, Learner, RunResult, StepRecord
from mdft_fast.learning.loop import construct, specialize
from mdft_fast.learning.order import BatchOrder
from mdft_fast.learning.outcome import doubts_of_holdout
from mdft_fast.learning.teachers import (
    Ask,
    TaughtTask,
    holdout_cross_entropy,
    own_features,
    teach,
)

__all__ = [
    "Ask",
    "BatchOrder",
    "Callback",
    "ConstructConfig",
    "Learner",
    "OptimizerConfig",
    "RunResult",
    "Schedule",
    "SpecializeConfig",
    "StageConfig",
    "StepRecord",
    "TaughtTask",
    "check_capturable_mode",
    "construct",
    "doubts_of_holdout",
    "holdout_cross_entropy",
    "own_features",
    "specialize",
    "teach",
]
