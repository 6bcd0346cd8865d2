# SPDX-License-Identifier: Apache-2.0
"""mdft_fast: turn a pool of fine-tuned models into one better model, without labels.

Operators (usable alone): merge, merge_tensors, merge_dots, debiased_entropy_loss.
The whole way: Pool, Task -> MetaModel -> construct, specialize -> evaluate, CoefficientCard, load;
or all of it at once: run(recipe).
"""

__version__ = "0.1.0"

from mdft_fast.cards import CoefficientCard, load, save_model
from mdft_fast.data import NpzSource, Task
from mdft_fast.errors import MdftError, MdftFallbackWarning
from mdft_fast.evaluate import Evaluation, evaluate
from mdft_fast.layout import Layout
from mdft_fast.model import MetaModel
from mdft_fast.ops import (
    DebiasedEntropyFunction,
    MergeFunction,
    debiased_entropy_loss,
    kernels,
    merge,
    merge_dots,
    merge_tensors,
)
from mdft_fast.pool import Head, Pool
from mdft_fast.run import MemoryPlan, plan, run
from mdft_fast.stages import (
    ConstructConfig,
    OptimizerConfig,
    RunResult,
    SpecializeConfig,
    construct,
    specialize,
)
from mdft_fast.task_vectors import TaskVectors

__all__ = [
    "CoefficientCard",
    "ConstructConfig",
    "DebiasedEntropyFunction",
    "Evaluation",
    "Head",
    "Layout",
    "MdftError",
    "MdftFallbackWarning",
    "MemoryPlan",
    "MergeFunction",
    "MetaModel",
    "NpzSource",
    "OptimizerConfig",
    "Pool",
    "RunResult",
    "SpecializeConfig",
    "Task",
    "TaskVectors",
    "construct",
    "debiased_entropy_loss",
    "evaluate",
    "kernels",
    "load",
    "merge",
    "merge_dots",
    "merge_tensors",
    "plan",
    "run",
    "save_model",
    "specialize",
]
