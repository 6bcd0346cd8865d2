# SPDX-License-Identifier: Apache-2.0
"""Entropy against true loss, drops, and what the blocks of an encoder give."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.analysis import LayerReader, accuracy_drop, entropy_and_loss, spearman
from mdft_fast import MdftError
from mdft_fast.evaluation import load_test_sets
from tests.world import PREPROCESS, World


def test_entropy_and_loss_are_those_of_each_sample(world: World) -> None:
    meta = world.meta()
    (test,) = load_test_sets(world.tasks[:1], PREPROCESS)
    entropy, loss = entropy_and_loss(meta, test.task.name, test.samples, test.labels, batch=7)
    logits = meta(test.samples.batch(torch.arange(40)), test.task.name).detach().double()
    q = logits.softmax(-1)
    torch.testing.assert_close(entropy.double(), -(q * q.log()).sum(-1), rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(logits, test.labels, reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(MdftError, match=r"labels must be \[40\], got \[39\]"):
        entropy_and_loss(meta, test.task.name, test.samples, test.labels[1:])


def ranks(values: list[float]) -> Tensor:
    """Returns mean ranks, by counting: what scipy must agree with."""
    x = torch.tensor(values, dtype=torch.float64)
    return (x[:, None] > x).sum(1) + 0.5 * ((x[:, None] == x).sum(1) - 1)


def test_spearman_is_the_correlation_of_ranks_and_knows_ties() -> None:
    a, b = [0.1, 5.0, 5.0, 2.0, -3.0], [1.0, 2.0, 9.0, 9.0, 0.0]
    expected = float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])
    assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)
    x = torch.linspace(-3, 3, 50)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_spearman_of_what_does_not_vary_is_none() -> None:
    assert spearman(torch.ones(5), torch.arange(5.0)) is None
    assert spearman(torch.ones(1), torch.ones(1)) is None
    with pytest.raises(MdftError, match=r"two \[n\], got \[5\] and \[4\]"):
        spearman(torch.ones(5), torch.ones(4))


def test_drop_in_points_and_relative() -> None:
    drop = accuracy_drop(0.8, 0.6)
    assert drop.points == pytest.approx(0.2)
    assert drop.relative == pytest.approx(0.25)
    assert accuracy_drop(0.5, 0.75).points == -0.25
    assert accuracy_drop(0.0, 0.0).relative is None
    with pytest.raises(MdftError, match=r"before must be in \[0, 1\], got 80"):
        accuracy_drop(80.0, 60.0)


class Doubling(nn.Module):
    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.tuples = tuples

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, None]:
        return (2 * x, None) if self.tuples else 2 * x


class TokensFirst(nn.Module):
    """A block whose tokens come first, as open_clip's did, in an encoder of plain vectors."""

    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.block, self.idle = Doubling(tuples), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x.flatten(2).permute(2, 0, 1))  # [T, B, 3]
        return (out[0] if self.block.tuples else out).mean(0)


def images(count: int, size: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("count", [4, 5])
def test_layers_find_the_images_dimension(tuples: bool, count: int) -> None:
    """Also with as many images as tokens, where a single shape says nothing."""
    module, x = TokensFirst(tuples).eval(), images(count)
    read = LayerReader(module, ["block"], x)
    assert read.names == ("block", "output")
    block, output = read(x)
    torch.testing.assert_close(block, 2 * x.flatten(2).transpose(1, 2).flatten(1))
    torch.testing.assert_close(output, 2 * x.mean((2, 3)))
    assert not module.block._forward_hooks


def test_layers_of_a_meta_model_change_nothing(world: World) -> None:
    module = world.meta().materialize()
    before = copy.deepcopy(module.state_dict())
    x = images(6, 8)
    first, second, output = LayerReader(module, ["blocks.0", "blocks.1"], x)(x)
    assert first.shape == second.shape == (6, 8 * 8 * 8)
    torch.testing.assert_close(output, module(x))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_layers_errors_say_what_was_wanted_and_what_came() -> None:
    summed = nn.Sequential(nn.Flatten(), nn.Softmax(0)).eval()
    summed.register_forward_hook(lambda module, inputs, output: output.sum(0))
    tokens = TokensFirst(False).eval()
    for module, blocks, count, message in (
        (TokensFirst(False), ["block"], 4, "must be in eval mode, got training mode"),
        (tokens, ["idle"], 4, r"must run and give a tensor, got none of \['idle'\]"),
        (tokens, ["block"], 2, "3 images or more, got 2"),
        (summed, [], 4, r"must count the images, got \[12\] for 2"),
    ):
        with pytest.raises(MdftError, match=message):
            LayerReader(module, blocks, images(count))
