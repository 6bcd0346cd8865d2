# SPDX-License-Identifier: Apache-2.0
"""The recipe: one YAML file that says what a run reads, does and writes."""

from mdft_fast.recipe.data import AdaptData, EvaluateData, HfData, TorchvisionData
from mdft_fast.recipe.messages import RecipeError
from mdft_fast.recipe.presets import PRESETS
from mdft_fast.recipe.recipe import Recipe
from mdft_fast.recipe.sections import (
    Backbone,
    Construct,
    Filter,
    HeadSource,
    Memory,
    Objective,
    Optimizer,
    PoolSource,
    Preprocess,
    Specialize,
    TaskRecipe,
)

__all__ = [
    "PRESETS",
    "AdaptData",
    "Backbone",
    "Construct",
    "EvaluateData",
    "Filter",
    "HeadSource",
    "HfData",
    "Memory",
    "Objective",
    "Optimizer",
    "PoolSource",
    "Preprocess",
    "Recipe",
    "RecipeError",
    "Specialize",
    "TaskRecipe",
    "TorchvisionData",
]
