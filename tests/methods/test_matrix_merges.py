# SPDX-License-Identifier: Apache-2.0
"""The merges of matrices against plain float64 formulas, through thin factors, and at the edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdft_fast import MdftError
from mdft_fast.arena import CODECS, ERROR_OF_CODEC, Codec
from mdft_fast.methods import (
    Aswudi,
    IsoC,
    IsoCts,
    MatrixMerge,
    TsvM,
    Wudi,
    apply,
    interference,
    mean_of,
    singular_triples,
)
from tests.methods.made_pools import make_pool, tensors

SHAPES = {"tall": (9, 6), "wide": (5, 12), "square": (8, 8)}
MERGES = [TsvM(), IsoC(), IsoCts(), Wudi(), Aswudi()]
ROUNDING = 2.0**-24


class Layers(nn.Module):
    """Linear layers in blocks, as names and types tell; the rest is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 5)
        self.blocks = nn.ModuleList(nn.Linear(*shape[::-1]) for shape in SHAPES.values())
        self.norm = nn.LayerNorm(5)


NAMES = [f"blocks.{i}.weight" for i in range(len(SHAPES))]


def draw(K: int, rank: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Returns random task vectors of :class:`Layers`, float32; matrices of a rank."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, tensor in Layers().named_parameters():
        delta = torch.randn(K, *tensor.shape, generator=generator, dtype=torch.float64)
        if rank is not None and name in NAMES:
            right = torch.randn(K, rank, tensor.shape[1], generator=generator, dtype=torch.float64)
            delta = delta[..., :rank] @ right
        deltas[name] = delta.float()
    return deltas


def merged(
    deltas: dict[str, Tensor], method: MatrixMerge, module: nn.Module | None = None
) -> dict[str, Tensor]:
    made = tensors(apply(make_pool(deltas), [method], backbone=module or Layers()))
    return {name: tensor[0] for name, tensor in made.items()}


# The rules, as papers have them: SVDs, least squares by rows. Float64 [K, out, in] -> [out, in].
def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def polar(columns: Tensor) -> Tensor:
    left, _, right = svd(columns)
    return left @ right


def tsv_m(deltas: Tensor) -> Tensor:
    rank = max(1, min(deltas.shape[1:]) // len(deltas))
    triples = [svd(delta) for delta in deltas]
    left = polar(torch.cat([t[0][:, :rank] for t in triples], 1))
    right = polar(torch.cat([t[2][:rank] for t in triples]))
    return left @ torch.cat([t[1][:rank] for t in triples]).diag() @ right


def iso_c(deltas: Tensor) -> Tensor:
    left, values, right = svd(deltas.sum(0))
    return left @ (torch.ones_like(values) * values.mean()).diag() @ right


def iso_cts(deltas: Tensor, common: float = 0.8) -> Tensor:
    K, rank = len(deltas), min(deltas.shape[1:])
    each = min(rank // K, round((rank - int(common * rank)) / K))
    left, values, right = svd(deltas.sum(0))
    keep = rank - K * each
    lefts, levels, rights = [left[:, :keep]], [values[:keep]], [right[:keep]]
    for delta in deltas:
        u, s, v = svd(delta - lefts[0] @ lefts[0].mT @ delta)
        lefts.append(u[:, :each])
        levels.append(s[:each])
        rights.append(v[:each])
    return torch.cat(levels).mean() * polar(torch.cat(lefts, 1)) @ polar(torch.cat(rights))


def wudi(deltas: Tensor, ridge: float = 0.1, anchor: float | None = None) -> Tensor:
    """By rows of least squares: ‖(θ − τ_k) τ_kᵀ‖ / ‖τ_k‖, and √e ‖θ − anchor S‖."""
    unit = torch.cat([delta / delta.norm() for delta in deltas])
    goals = torch.cat([delta @ delta.mT / delta.norm() for delta in deltas])
    root = (ridge * unit.square().sum() / unit.shape[1]).sqrt()
    times = len(deltas) ** 0.5 if anchor is None else anchor
    rows = torch.cat([unit, root * torch.eye(unit.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(
        rows,
        torch.cat([goals, root * times * deltas.sum(0).mT]),
    ).solution.mT


def aswudi(deltas: Tensor) -> Tensor:
    unit = torch.cat([delta / delta.norm() for delta in deltas])
    _, roots, right = svd(unit)
    count = math.ceil(roots.sum() ** 2 / roots.square().sum() - 1e-9)
    strong = right[:count]
    target = sum(delta @ delta.mT @ delta / delta.norm() ** 2 for delta in deltas)
    inverse = strong.mT @ (1 / roots[:count] ** 2).diag() @ strong
    return target @ inverse + deltas.sum(0) @ (torch.eye(unit.shape[1]) - strong.mT @ strong)


RULES: list[tuple[MatrixMerge, Callable[[Tensor], Tensor]]] = [
    (TsvM(), tsv_m),
    (TsvM(scale=0.5), lambda deltas: 0.5 * tsv_m(deltas)),
    (IsoC(), iso_c),
    (IsoC(scale=1.5), lambda deltas: 1.5 * iso_c(deltas)),
    (IsoCts(), iso_cts),
    (IsoCts(common=0.25, scale=2.0), lambda deltas: 2 * iso_cts(deltas, 0.25)),
    (IsoCts(common=1.0), iso_c),
    (Wudi(), wudi),
    (Wudi(ridge=0.001), lambda deltas: wudi(deltas, 0.001)),
    (Wudi(ridge=0.3, anchor=3.0), lambda deltas: wudi(deltas, 0.3, 3.0)),
    (Aswudi(), aswudi),
]


@pytest.mark.parametrize("K", [1, 2, 3, 11])  # 11: more tasks than rows
@pytest.mark.parametrize(("method", "rule"), RULES, ids=[str(method) for method, _ in RULES])
def test_is_its_rule(method: MatrixMerge, rule: Callable[[Tensor], Tensor], K: int) -> None:
    deltas = draw(K, seed=K)
    made = merged(deltas, method)
    for name in NAMES:
        exact = rule(deltas[name].double())
        # Rounded once; conditions of the problems, below 1e6 here, times float64's rounding.
        bound = ROUNDING * exact.abs() + 1e-9 * exact.abs().max()
        assert ((made[name].double() - exact).abs() <= bound).all(), name
    for name in deltas.keys() - set(NAMES):
        assert torch.equal(made[name], mean_of(deltas[name])), name


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("method", [TsvM(), Wudi(), Aswudi()])
def test_one_model_is_given_back(method: MatrixMerge, rank: int | None, codec: Codec) -> None:
    pool = make_pool(draw(1, rank), codec)
    made = tensors(apply(pool, [method], backbone=Layers()))
    for name, tensor in tensors(pool).items():
        # What the codec may cost twice, and a rounding to float32.
        allowed = (2 * ERROR_OF_CODEC[codec] + 2 * ROUNDING) * tensor.abs().max()
        assert ((made[name] - tensor).abs() <= allowed).all(), name


@pytest.mark.parametrize("method", [IsoC(), IsoCts()])
def test_one_model_keeps_its_directions_and_the_sum_of_its_values(method: MatrixMerge) -> None:
    deltas = draw(1)
    made = merged(deltas, method)
    for name in NAMES:
        before, after = svd(deltas[name][0].double()), svd(made[name].double())
        level = before[1].mean().expand_as(after[1])
        assert torch.allclose(after[1], level, rtol=1e-6, atol=0)
        assert torch.allclose(made[name].double(), level[0] * before[0] @ before[2], atol=1e-6)
    rank_one = draw(1, rank=1)
    made = merged(rank_one, method)
    assert all(torch.allclose(made[n], rank_one[n][0], rtol=1e-5, atol=1e-6) for n in NAMES)


@pytest.mark.parametrize("method", MERGES)
def test_zero_and_opposite_vectors_cancel(method: MatrixMerge) -> None:
    one = draw(1)
    zero = merged({name: torch.zeros(3, *t.shape[1:]) for name, t in one.items()}, method)
    assert not any(tensor.any() for tensor in zero.values())
    opposite = merged({name: torch.cat([t, -t]) for name, t in one.items()}, method)
    assert all(float(tensor.abs().max()) < 1e-6 for tensor in opposite.values())


# K sets how many directions tsv_m and iso_cts keep: there zeros count as a task still.
@pytest.mark.parametrize(
    ("method", "rank"),
    [*((m, 1) for m in MERGES), *((m, None) for m in (IsoC(), Wudi(), Aswudi()))],
)
def test_a_zero_vector_counts_for_nothing(method: MatrixMerge, rank: int | None) -> None:
    deltas = draw(2, rank)
    more = {name: torch.cat([t, torch.zeros_like(t[:1])]) for name, t in deltas.items()}
    made, wanted = merged(more, method), merged(deltas, method)
    assert all(torch.allclose(made[n], wanted[n], rtol=1e-5, atol=1e-6) for n in NAMES)


def test_equal_models_of_small_rank_are_one_model_to_tsv_m() -> None:
    one = draw(1, rank=1)
    deltas = {name: t.repeat(4, *[1] * (t.dim() - 1)) for name, t in one.items()}
    made = merged(deltas, TsvM())
    assert all(torch.allclose(made[n], one[n][0], rtol=1e-5, atol=1e-6) for n in NAMES)


@pytest.mark.parametrize("method", MERGES)
def test_the_order_of_tasks_changes_roundings_alone(method: MatrixMerge) -> None:
    deltas = draw(4)
    order = torch.tensor([2, 0, 3, 1])
    made = merged(deltas, method)
    turned = merged({name: t[order] for name, t in deltas.items()}, method)
    assert all(torch.allclose(turned[n], made[n], rtol=1e-5, atol=1e-6) for n in made)
    pool = make_pool(deltas)
    first, again = (apply(pool, [method], backbone=Layers()) for _ in range(2))
    assert first.checksum == again.checksum


@pytest.mark.parametrize("method", MERGES)
def test_other_kinds_of_layers_are_the_same_matrices(method: MatrixMerge) -> None:
    class Conv1D(nn.Module):  # as transformers has it: [in, out]
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.weight = 6, nn.Parameter(torch.zeros(4, 6))

    matrices = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Conv2d(1, 6, 2, bias=False), Conv1D())
    deltas = {
        "0.weight": matrices,
        "1.weight": matrices.reshape(3, 6, 1, 2, 2),
        "2.weight": matrices.mT.contiguous(),
    }
    made = merged(deltas, method, module)
    assert torch.equal(made["1.weight"].flatten(1), made["0.weight"])
    assert torch.equal(made["2.weight"].mT, made["0.weight"])


WIDE = {"blocks.0.weight": (40, 64), "blocks.1.weight": (64, 40), "blocks.2.weight": (48, 48)}


def adapters(K: int, rank: int) -> dict[str, Tensor]:
    """Returns sums and differences to a base of float32 products of a rank, as a pool has them."""
    generator = torch.Generator().manual_seed(rank)
    deltas = {}
    for name, (out, in_) in WIDE.items():
        left = torch.linalg.qr(torch.randn(K, out, rank, generator=generator)).Q
        right = torch.linalg.qr(torch.randn(K, in_, rank, generator=generator)).Q
        values = torch.linspace(2, 1, rank) * torch.linspace(1, 2, K)[:, None, None]
        base = torch.randn(out, in_, generator=generator)
        deltas[name] = (base + (left * values) @ right.mT) - base
    return deltas


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the side of every matrix that is factorised."""
    factorised: list[int] = []

    def watch(factorise: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def watched(matrix: Tensor) -> Any:
            factorised.append(len(matrix))
            return factorise(matrix)

        return watched

    monkeypatch.setattr(torch.linalg, "eigh", watch(torch.linalg.eigh))
    monkeypatch.setattr(torch.linalg, "cholesky", watch(torch.linalg.cholesky))
    return factorised


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("method", MERGES)
def test_small_ranks_go_through_thin_factors_to_the_same_result(
    method: MatrixMerge, rank: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = adapters(3, rank)
    module = nn.Module()
    module.blocks = nn.ModuleList(nn.Linear(i, o, bias=False) for o, i in WIDE.values())
    thin = merged(deltas, method, module)
    assert 0 < max(sizes) <= 16  # a first sketch's columns; K r directions are fewer
    for user in (singular_triples, interference):
        monkeypatch.setattr(user, "thin_triples", lambda matrix, level=0.0: None)
    dense = merged(deltas, method, module)
    for name, tensor in dense.items():
        # Thin triples drop the rounding of base + B·A, ε of elements of at most 5: a matrix of
        # norm √out + √in of that. A direction turns by it over its value (at least 1), and making
        # directions orthogonal multiplies that by how dependent they are, below 10 here.
        noise = 5 * ROUNDING * 2 * 64**0.5
        assert float((thin[name] - tensor).norm()) <= 10 * 6 * noise, name


def test_fields_have_bounds() -> None:
    with pytest.raises(MdftError, match=r"tsv_m.scale: must be above 0, got 0"):
        TsvM(scale=0)
    with pytest.raises(MdftError, match=r"wudi.ridge: must be above 0, got 0"):
        Wudi(ridge=0)
    with pytest.raises(MdftError, match=r"iso_cts.common: must be in \[0, 1\], got 1.5"):
        IsoCts(common=1.5)
