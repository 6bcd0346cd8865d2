# SPDX-License-Identifier: Apache-2.0
"""PCB-merging against its definition, everything at once, sorted, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast.methods import Pcb, apply
from tests.methods.made_pools import draw, make_pool, parts, tensors, whole


def pcb(flat: Tensor, density: float) -> Tensor:
    """Returns the K vectors ``[K, P]`` of which the paper's merge is the sum."""
    K, P = flat.shape
    outermost = P // 10_000
    ordered = flat.abs().sort(1).values
    least, largest = ordered[:, [outermost]], ordered[:, [P - 1 - outermost]]
    size = flat.abs().clamp(least, largest)
    inside = torch.exp(K * ((size - least) / (largest - least)) ** 2)
    balance = (inside * torch.tanh(flat * flat.sum(0))).clamp(min=0)
    threshold = balance.sort(1, descending=True).values[:, [max(1, int(density * P)) - 1]]
    weight = balance.clamp(min=threshold) - threshold
    weight = weight / weight.amax(1, keepdim=True)
    return flat.sign() * size * weight / weight.sum(0).clamp(min=1e-300)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.9])
@pytest.mark.parametrize(("K", "scale"), [(2, 1.0), (4, 1e-3), (1, 1.0)])
def test_is_the_definition(K: int, scale: float, density: float) -> None:
    deltas = {name: scale * tensor for name, tensor in draw(K, seed=K).items()}
    deltas["blocks.3.weight"] = scale * draw(K, shapes={"w": (150, 100)})["w"]  # some are outermost
    made = tensors(apply(make_pool(deltas), [Pcb(density)]))
    wanted = parts(pcb(whole(deltas), density), deltas)
    for name, tensor in wanted.items():
        # Near the threshold a weight is a difference of two float32 numbers.
        assert torch.allclose(made[name].double(), tensor, rtol=1e-4, atol=1e-5 * scale), name


def test_a_share_of_each_vector_stays() -> None:
    made = apply(make_pool(draw(3)), [Pcb(0.2)]).vectors.decode()
    P = sum(tensor[0].numel() for tensor in draw(1).values())
    kept = (made != 0).sum(1)
    assert ((kept > 0.19 * P) & (kept <= 0.2 * P)).all()


def test_against_the_sum_nothing_stays() -> None:
    rows = torch.tensor([[3.0, -1, 2, 1], [-1, -2, 2, 1.5]])
    (made,) = tensors(apply(make_pool({"w": rows}), [Pcb(1.0)])).values()
    assert made[1, 0] == 0  # the sum is 2, and this is -1
    assert (made * rows >= 0).all()


def test_many_tasks_do_not_overflow() -> None:
    deltas = draw(95, shapes={"w": (4, 5)})  # e^95 is beyond float32
    made = tensors(apply(make_pool(deltas), [Pcb(0.5)]))["w"].double()
    wanted = parts(pcb(whole(deltas), 0.5), deltas)["w"]
    assert wanted.any()
    assert torch.allclose(made, wanted, rtol=1e-4, atol=1e-5)


def test_where_all_sizes_are_equal_agreement_counts_alone() -> None:
    rows = torch.tensor([[1.0, -1, 1, 1], [1, 1, 1, -1]])
    (made,) = tensors(apply(make_pool({"w": rows}), [Pcb(0.5)])).values()
    assert made.tolist() == [[0.5, 0, 0.5, 0]] * 2


def test_equal_vectors_share_an_element() -> None:
    deltas = {name: tensor.repeat(3, *[1] * (tensor.dim() - 1)) for name, tensor in draw(1).items()}
    three = tensors(apply(make_pool(deltas), [Pcb(0.3)]))
    for name, tensor in three.items():
        kept = tensor != 0
        # A third each; what is cut off at the ends is none here, as P is below 10,000.
        assert torch.allclose(3 * tensor[kept], deltas[name][kept], rtol=1e-6, atol=0)
