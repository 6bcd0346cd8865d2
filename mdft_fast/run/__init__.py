# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: files, stages, evaluation, result."""

from mdft_fast.run.build import Built, build, construct_config, pack, specialize_config
from mdft_fast.run.plan import MemoryPlan, plan
from mdft_fast.run.run import RunSummary, run

__all__ = [
    "Built",
    "MemoryPlan",
    "RunSummary",
    "build",
    "construct_config",
    "pack",
    "plan",
    "run",
    "specialize_config",
]
