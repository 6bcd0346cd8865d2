# SPDX-License-Identifier: Apache-2.0
"""What modules may do to weights that come and go: the numbers stay right, or an error says why."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdft_fast import MdftError, MetaModel
from mdft_fast.model.layerwise import _OWN_USES, Layerwise, _Pass
from tests.model.test_modes import SIZE, gradient, images, make_pool

OPTIONS: list[dict[str, Any]] = [
    {"mode": "layerwise"},
    {"mode": "layerwise", "checkpointing": True},
    {"mode": "streamed"},
    {"mode": "resident", "checkpointing": True},
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


class Net(nn.Module):
    """A stem, three blocks, a tail."""

    block: type[nn.Module] = Block

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * SIZE * SIZE, 32)
        self.latent = nn.Parameter(torch.randn(32))
        self.blocks = nn.ModuleList(self.block() for _ in range(3))
        self.tail = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.tail(x)
        return out


class KeepsAView(Net):
    """Uses a weight of the stem between and after the blocks, through a view made before them."""

    def forward(self, x: Tensor) -> Tensor:
        latent = self.latent.expand(len(x), -1)
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x + latent)
        out: Tensor = self.tail(x * latent)
        return out


class Shared(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()] * 3)


def patched(net: nn.Module) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = x - self.b(self.a(x).sin())
        return out

    for block in net.blocks:
        block.forward = types.MethodType(forward, block)
    return net


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("name", "blocks"),
    [("kept view", None), ("patched", None), ("shared", None), ("shared", ["blocks"])],
)
def test_the_numbers_stay_right(name: str, blocks: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = {"kept view": KeepsAView, "patched": lambda: patched(Net()), "shared": Shared}[name]()
    pool = make_pool(net)
    features, grad = gradient(MetaModel(net, pool))
    meta = MetaModel(net, pool, blocks=blocks, **options)
    for _ in range(2):  # what a first call leaves behind, a second one meets
        again, other = gradient(meta)
        assert torch.equal(again, features)
        torch.testing.assert_close(other, grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))


def test_the_buffer_is_used_again_where_nobody_else_holds_it() -> None:
    net = Net()
    meta = MetaModel(net, make_pool(net), mode="layerwise")
    runner = meta._runner
    assert isinstance(runner, Layerwise)
    places = set()
    for _ in range(3):
        gradient(meta)
        buffer = runner._buffer
        assert buffer is not None
        places.add(buffer.data_ptr())
        assert torch._C._storage_Use_Count(buffer.untyped_storage()._cdata) <= _OWN_USES
        held = buffer[:1]
        assert torch._C._storage_Use_Count(buffer.untyped_storage()._cdata) > _OWN_USES
        del held
    assert len(places) == 1


@pytest.mark.parametrize("options", OPTIONS)
def test_a_change_in_place_is_noticed(options: dict[str, Any]) -> None:
    net = Net()
    meta = MetaModel(net, make_pool(net), **options)
    x = images()
    features = meta.encode(x)
    x.zero_()
    with pytest.raises(RuntimeError, match=r"in.?place"):
        features.square().sum().backward()


class ChangesItsInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_block_that_changes_its_input(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = type("Changes", (Net,), {"block": ChangesItsInput})()
    pool = make_pool(net)
    _, wanted = gradient(MetaModel(net, pool))
    meta = MetaModel(net, pool, **options)
    if options.get("checkpointing"):  # the same numbers would not come out again
        with pytest.raises(RuntimeError, match=r"in.?place"):
            gradient(meta)
    else:
        assert torch.equal(gradient(meta)[1], wanted)


@pytest.mark.parametrize("options", OPTIONS)
def test_second_derivatives_in_x_are_right(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Net()
    pool = make_pool(net)
    found = []
    for given in ({}, options):
        meta = MetaModel(net, pool, **given)
        meta.coefficients.requires_grad_(False)
        x = images(2).requires_grad_()
        (g,) = torch.autograd.grad(meta.encode(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(g.square().sum(), x)
        found.append(second)
    torch.testing.assert_close(found[1], found[0])


class Drops(Block):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(F.dropout(self.a(x).tanh(), 0.5))  # training by default
        return out


@pytest.mark.parametrize("options", OPTIONS)
def test_a_recomputation_draws_the_same_random_numbers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = type("Random", (Net,), {"block": Drops})()
    pool = make_pool(net)
    found = []
    for given in ({}, options):
        torch.manual_seed(5)
        found.append(gradient(MetaModel(net, pool, **given))[1])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_pass_without_backward_leaves_nothing(options: dict[str, Any]) -> None:
    net = Net()
    meta = MetaModel(net, make_pool(net), **options)
    alive = []
    for _ in range(4):
        features = meta.encode(images())  # with gradients, never taken back
        alive.append(weakref.ref(features))
        del features
    gc.collect()
    assert not any(ref() is not None for ref in alive)
    passes = [item for item in gc.get_objects() if isinstance(item, _Pass)]
    assert len(passes) <= 2  # the one whose weights the buffer holds, and another test's


class NoTail(Net):
    """Nothing but the blocks saves a weight: torch itself would notice one of the tail's."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return x


def test_a_recomputation_in_resident_notices_another_merge() -> None:
    net = NoTail()
    meta = MetaModel(net, make_pool(net), checkpointing=True)
    loss = meta.encode(images()).square().sum()
    meta.set_coefficients(0.7)
    with torch.no_grad():
        meta.encode(images())
    with pytest.raises(MdftError, match="λ must stay as it was until backward is done"):
        loss.backward()


def test_a_backbone_that_checkpoints_by_itself_is_refused() -> None:
    net = Net()
    pool = make_pool(net)
    net.grad_checkpointing = True
    with pytest.raises(MdftError, match=r"must not checkpoint by itself \(grad_checkpointing\)"):
        MetaModel(net, pool)


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.register_buffer("angle", torch.rand(5) / 3, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x.flatten(1))) * self.angle.sum()
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.tail(x)
        return out


def test_bf16_does_not_round_what_is_exported() -> None:
    torch.manual_seed(0)
    net = Normed().eval()
    net.norm.requires_grad_(False)
    pool = make_pool(net)
    exact = MetaModel(net, pool).materialize()
    rounded = MetaModel(net, pool, precision="bf16").materialize()
    for (name, a), (_, b) in zip(
        (*exact.named_parameters(), *exact.named_buffers()),
        (*rounded.named_parameters(), *rounded.named_buffers()),
        strict=True,
    ):
        assert torch.equal(a, b), name
