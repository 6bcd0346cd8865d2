# SPDX-License-Identifier: Apache-2.0
"""Masks from a file, for all vectors or one each; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.methods import Lines, Mask, Sign, apply
from tests.methods.made_pools import draw, make_pool, tensors


def masks(K: int) -> dict[str, Tensor]:
    return {name: tensor > 0.3 for name, tensor in draw(K, seed=4).items()}


@pytest.mark.parametrize("kind", [dict, tuple])
def test_masks_for_all_vectors_and_one_each(kind: type, tmp_path: Path) -> None:
    chosen = masks(3) if kind is dict else {name: mask[0] for name, mask in masks(1).items()}
    save_file(chosen, tmp_path / "masks.safetensors")
    deltas = draw(3)
    pool = apply(make_pool(deltas), [Mask(tmp_path / "masks.safetensors")])
    for name, tensor in tensors(pool).items():
        assert torch.equal(tensor, torch.where(chosen[name], deltas[name], 0.0)), name
    assert pool.methods == ("mask(file='masks.safetensors')",)
    later = apply(make_pool(deltas), [Sign(), Mask(str(tmp_path / "masks.safetensors"))])
    assert later.vectors.decode().count_nonzero() == pool.vectors.decode().count_nonzero()


def without(name: str) -> dict[str, Tensor]:
    return {key: mask for key, mask in masks(2).items() if key != name}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (without("gain"), "must hold a mask for each .*, got none for 1 of 7, such as 'gain'"),
        ({**masks(2), "head": torch.ones(1)}, "for the model's tensors alone, got 'head', one of"),
        (
            masks(3),
            r"'stem.weight' must be bool \[3, 5\] or \[2, 3, 5\], got torch.bool \[3, 3, 5\]",
        ),
        ({n: m.float() for n, m in masks(2).items()}, r"got torch.float32 \[2, 3, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    chosen: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(chosen, tmp_path / "masks.safetensors")
    with pytest.raises(MdftError, match=f"mask: .*masks.safetensors: .*{message}"):
        apply(make_pool(draw(2)), [Lines(), Mask(tmp_path / "masks.safetensors")])


@pytest.mark.parametrize("file", ["", 3, None])
def test_a_file_is_a_path(file: str) -> None:
    with pytest.raises(MdftError, match=r"mask.file: must be a path, got"):
        Mask(file)  # type: ignore[arg-type]


def test_a_recipes_path_starts_at_the_recipe(tmp_path: Path) -> None:
    from mdft_fast.app.recipe import Recipe

    content = {
        "version": 1, "pool": {"folder": "p"}, "tasks": [{"name": "a", "adapt": {"npz": "a.npz"}}],
        "output": "out", "transform": [{"mask": {"file": "masks/tall.safetensors"}}],
    }  # fmt: skip
    recipe = Recipe.from_mapping(content, folder=tmp_path)
    assert recipe.transform == (Mask(tmp_path / "masks/tall.safetensors"),)
    recipe.write(tmp_path / "elsewhere.yaml")
    assert Recipe.load(tmp_path / "elsewhere.yaml") == recipe
