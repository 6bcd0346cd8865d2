# SPDX-License-Identifier: Apache-2.0
"""The recipe: one YAML file that says what a run reads, does and writes."""

from mdft_fast.app.recipe.drafting import draft
from mdft_fast.app.recipe.error_lines import RecipeError
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import UNKNOWN, Recipe, unknown_keys
from mdft_fast.app.recipe.sample_sections import AdaptData, EvaluateData, HfData, TorchvisionData
from mdft_fast.app.recipe.sections import (
    Backbone,
    HeadSource,
    Memory,
    PoolSource,
    Preprocess,
    TaskRecipe,
)
from mdft_fast.app.recipe.stage_sections import (
    Construct,
    Filter,
    Objective,
    Optimizer,
    Specialize,
    construct_config,
    specialize_config,
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
    "construct_config",
    "draft",
    "parse",
    "specialize_config",
    "unknown_keys",
]
