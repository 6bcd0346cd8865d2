# SPDX-License-Identifier: Apache-2.0
"""The recipe: one YAML file that says what a run reads, does and writes."""

from mdft_fast.app.recipe.drafting import draft
from mdft_fast.app.recipe.error_lines import RecipeError
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import UNKNOWN, Recipe, unknown_keys
from mdft_fast.app.recipe.sample_sections import AdaptData, EvaluateData, HfData, TorchvisionData
from mdft_fast.app.recipe.sections import (
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
from mdft_fast.app.recipe.yaml_text import parse

__all__ = [
    "PRESETS",
    "UNKNOWN",
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
    "draft",
    "parse",
    "unknown_keys",
]
