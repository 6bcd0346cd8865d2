# SPDX-License-Identifier: Apache-2.0
"""The recipe: one YAML file that says what a run reads, does and writes."""

from mdft_fast.app.recipe.document import construct_config, specialize_config
from mdft_fast.app.recipe.drafting import draft
from mdft_fast.app.recipe.error_lines import RecipeError
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import UNKNOWN, Recipe, unknown_keys
from mdft_fast.app.recipe.sections import Construct, Curve, HeadSource, Specialize, TaskRecipe
from mdft_fast.app.recipe.yaml_text import leaves, parse

__all__ = [
    "PRESETS", "UNKNOWN", "Construct", "Curve", "HeadSource", "Recipe", "RecipeError", "Specialize",
    "TaskRecipe", "construct_config", "draft", "leaves", "parse", "specialize_config",
    "unknown_keys",
]  # fmt: skip
