# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its pool, model, heads and samples."""

from mdft_fast.app.opening.building import (
    Built,
    MakeHead,
    build,
    check_heads,
    images_at_once,
    tasks_of,
)
from mdft_fast.app.opening.pool_sources import (
    agreed_backbone,
    check_agrees,
    choose_device,
    open_pool,
    pool_arguments,
    preprocess_of,
    shapes_alone,
    spec_of,
)
from mdft_fast.app.opening.recipe_start import check_start, start_of
from mdft_fast.app.opening.sample_choice import first_samples, more_samples, of_test
from mdft_fast.app.opening.sample_loading import LoadedData, load_data
from mdft_fast.app.opening.sample_sources import sources_of
from mdft_fast.app.opening.started_pools import merged, pack, started
from mdft_fast.app.opening.task_heads import shape_of_head
from mdft_fast.app.recipe import construct_config, specialize_config

__all__ = [
    "Built", "LoadedData", "MakeHead", "agreed_backbone", "build", "check_agrees",
    "check_heads", "check_start", "choose_device", "construct_config", "first_samples",
    "images_at_once", "load_data", "merged", "more_samples", "of_test", "open_pool", "pack",
    "pool_arguments", "preprocess_of", "shape_of_head", "shapes_alone", "sources_of", "spec_of",
    "specialize_config", "start_of", "started", "tasks_of",
]  # fmt: skip
