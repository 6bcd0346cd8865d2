# SPDX-License-Identifier: Apache-2.0
"""The sections of the two stages: their keys are fields of the stages' configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdft_fast.app.recipe.dataclass_sections import DataclassSection, filled_from
from mdft_fast.app.recipe.value_types import WhichTasks
from mdft_fast.learning import ConstructConfig, OptimizerConfig, SpecializeConfig

if TYPE_CHECKING:
    from mdft_fast.app.recipe.document import Keys


@filled_from(OptimizerConfig)
class Optimizer(DataclassSection):
    """The optimiser of λ."""

    name: str
    lr: float
    schedule: str


@filled_from(ConstructConfig, entropy="use_entropy")
class Objective(DataclassSection):
    """Equations (2), (3) and (5)."""

    alpha: float
    entropy: bool
    reweight: str


@filled_from(ConstructConfig, enabled="filter")
class Filter(DataclassSection):
    """Equation (4)."""

    enabled: bool
    mu: float
    entropy_of: str


@filled_from(ConstructConfig)
class Construct(DataclassSection):
    """Stage 1: one model for all tasks."""

    steps: int
    batch: int
    draw: str
    objective: Objective = Objective.default()
    filter: Filter = Filter.default()
    optimizer: Optimizer
    holdout: float


@filled_from(SpecializeConfig)
class Specialize(DataclassSection):
    """Stage 2: one model a task.

    Attributes:
        tasks: which tasks get a specialized model: all, none or a list of names.
        control: whether stage 2 is run from task arithmetic too, without stage 1. It shows what
            of stage 2's result is owed to stage 1.
    """

    tasks: WhichTasks = "all"
    steps: int
    batch: int
    representation: str
    optimizer: Optimizer
    control: bool = True


def construct_config(recipe: Keys) -> ConstructConfig:
    """Returns stage 1's configuration."""
    stage = recipe.construct
    config: ConstructConfig = stage.build(
        **stage.objective.arguments(), **stage.filter.arguments(), **_shared(recipe)
    )
    return config


def specialize_config(recipe: Keys) -> SpecializeConfig:
    """Returns stage 2's configuration."""
    config: SpecializeConfig = recipe.specialize.build(
        holdout=recipe.construct.holdout, **_shared(recipe)
    )
    return config


def _shared(recipe: Keys) -> dict[str, object]:
    return {"seed": recipe.seed, **recipe.memory.arguments()}
