# SPDX-License-Identifier: Apache-2.0
"""Low rank against a whole SVD, on layers of several kinds; all else stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdft_fast import MdftError
from mdft_fast.methods import Lowrank, apply
from tests.methods.made_pools import MATRICES, backbone, draw, make_pool, tensors


def truncated(matrix: Tensor, energy: float, rank: int | None) -> Tensor:
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    share = (S**2).cumsum(0) / (S**2).sum()
    r = 1 + int((share < energy).sum())
    r = r if rank is None else min(r, rank)
    return (U[:, :r] * S[:r]) @ Vh[:r]


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.9, None), (0.5, None), (1.0, 3), (0.6, 2), (1e-9, None), (1.0, 500)]
)
def test_is_the_leading_part_of_an_svd(energy: float, rank: int | None) -> None:
    deltas = draw(3)
    pool = make_pool(deltas)
    made = tensors(apply(pool, [Lowrank(energy, rank)], backbone=backbone()))
    for name, tensor in deltas.items():
        if name not in MATRICES:
            assert torch.equal(made[name], tensor), name
            continue
        for matrix, given in zip(made[name], tensor, strict=True):
            wanted = truncated(given, energy, rank)
            assert (matrix.double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_convolutions_and_matrices_of_other_shapes() -> None:
    with torch.device("meta"):
        module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv2d(3, 10, 2), nn.Linear(4, 4)])})
    shapes = {"blocks.0.weight": (10, 3, 2, 2), "blocks.1.weight": (4, 4)}
    deltas = draw(2, shapes=shapes)
    made = tensors(apply(make_pool(deltas), [Lowrank(1.0, 2)], backbone=module))
    for name, tensor in made.items():
        matrices = tensor.flatten(2).double()
        assert torch.linalg.matrix_rank(matrices, rtol=1e-5).tolist() == [2, 2]
        for matrix, given in zip(matrices, deltas[name].flatten(2), strict=True):
            assert torch.allclose(matrix, truncated(given, 1.0, 2), rtol=0, atol=1e-6)


def test_a_matrix_of_rank_one_needs_one_triple() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(7, 1, generator=generator), torch.randn(1, 200, generator=generator)
    deltas = {"blocks.0.weight": (u @ v)[None]}
    made = tensors(apply(make_pool(deltas), [Lowrank(0.9999)], backbone=backbone()))
    assert torch.allclose(made["blocks.0.weight"], deltas["blocks.0.weight"], rtol=1e-5, atol=1e-6)


def test_without_a_backbone_there_are_no_layers() -> None:
    with pytest.raises(MdftError, match="lowrank: needs the backbone's linear layers, and the po"):
        apply(make_pool(draw(2)), [Lowrank()])


@pytest.mark.parametrize("rank", [0, 2.5])
def test_rank_is_a_whole_number(rank: float) -> None:
    with pytest.raises(MdftError, match=r"lowrank.rank: must be a whole number above 0, got"):
        Lowrank(rank=rank)  # type: ignore[arg-type]


def test_all_energy_is_the_matrix_itself() -> None:
    matrix = torch.zeros(1, 7, 200)
    matrix[0, 0, 0], matrix[0, 1, 1] = 1, 1e-9  # whose square is beyond float64 beside 1
    pool = make_pool({"blocks.0.weight": matrix})
    assert apply(pool, [Lowrank(energy=1.0)], backbone=backbone()).checksum == pool.checksum
