# SPDX-License-Identifier: Apache-2.0
"""λ's path in bf16 stays near fp32's, on real models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mdft_fast import MetaModel, construct
from mdft_fast.app.opening import build, construct_config
from mdft_fast.app.recipe import Recipe
from mdft_fast.learning import teach

ROOT = Path(__file__).resolve().parents[2]
STEPS = 25


@pytest.mark.usefixtures("real_pool")
def test_the_path_in_bf16_is_near_that_in_fp32() -> None:
    pytest.importorskip("timm")
    recipe = Recipe.load(ROOT / "examples" / "real_pool.yaml", ["preset=paper"])
    built, config = build(recipe), construct_config(recipe)
    # The paper's objective and optimizer, with the rate and schedule of its reference run.
    optimizer = dataclasses.replace(config.optimizer, lr=0.01, schedule="cosine")
    config = dataclasses.replace(config, steps=STEPS, batch=4, optimizer=optimizer)
    exact = built.meta_model()
    # One set of teachers: a sample at the filter's threshold would set the draws apart.
    taught = teach(exact, built.unlabelled, holdout=config.holdout, seed=config.seed)
    wanted = construct(exact, taught, config).path
    rounded = MetaModel(built.backbone, built.pool, mode="layerwise", precision="bf16")
    got = construct(rounded, taught, config).path
    for step in range(STEPS + 1):
        near = torch.cosine_similarity(wanted[step].flatten(), got[step].flatten(), dim=0)
        assert near > 0.999, f"λ at step {step}: {float(near):.5f}"
    moved, other = wanted[-1] - wanted[0], got[-1] - got[0]
    assert float(moved.norm()) > 0.5
    assert torch.cosine_similarity(moved.flatten(), other.flatten(), dim=0) > 0.999
