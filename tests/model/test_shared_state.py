# SPDX-License-Identifier: Apache-2.0
"""State behind a model's back: weights, task vectors and λ that others change or share."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from mdft_fast import ConstructConfig, MdftError, MetaModel, construct
from mdft_fast.model.feeds import StagedFeed
from mdft_fast.model.layerwise import Layerwise
from tests.model.test_hazards import Net
from tests.model.test_modes import images, make_pool
from tests.world import World

MODES = ["resident", "layerwise", "streamed"]


def made(mode: str, **options: Any) -> MetaModel:
    torch.manual_seed(0)
    net = Net()
    return MetaModel(net, make_pool(net), mode=mode, **options)


def answers(meta: MetaModel) -> tuple[Tensor, Tensor]:
    """What the model gives, and what its exported copy does."""
    with torch.no_grad():
        return meta.encode(images()), meta.materialize()(images())


# ---- weights


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["vectors", "base"])
def test_base_and_vectors_changed_in_place_are_read_again(what: str, mode: str) -> None:
    meta = made(mode)
    before, _ = answers(meta)
    arena = meta.vectors.codes if what == "vectors" else meta.base
    arena[arena.abs() < 0.05] = 0
    got, wanted = answers(meta)
    torch.testing.assert_close(got, wanted)
    assert not torch.equal(got, before)


@pytest.mark.parametrize("mode", ["layerwise", "streamed"])
def test_they_must_stay_until_backward_is_done(mode: str) -> None:
    meta = made(mode)
    loss = meta.encode(images()).square().sum()
    meta.base.mul_(2)
    with pytest.raises(RuntimeError, match="must stay as they were until backward is done"):
        loss.backward()


def test_staged_copies_are_made_again() -> None:
    meta = made("layerwise")
    runner = meta._runner
    assert isinstance(runner, Layerwise)
    pieces = (runner._outside, *runner._blocks)
    runner._feed = StagedFeed(meta.base, meta.vectors, meta.layout, pieces, torch.device("cpu"))
    answers(meta)
    meta.vectors.codes.mul_(3)
    torch.testing.assert_close(*answers(meta))


def halve(module: nn.Module, _: Any) -> None:
    module.weight.data.mul_(0.5)


def swap(module: nn.Module, _: Any) -> None:
    module.weight.data[[0, 1]] = module.weight.data[[1, 0]]


@pytest.mark.parametrize("edit", [halve, swap])
def test_weights_that_a_hook_changes_are_merged_again(edit: Callable[..., None]) -> None:
    net = Net()
    net.blocks[0].a.register_forward_pre_hook(edit)
    pool, results = make_pool(net), []
    for mode in MODES:
        meta = MetaModel(net, pool, mode=mode)
        with torch.no_grad():
            results += [meta.encode(images()) for _ in range(2)]
    assert all(torch.equal(one, results[0]) for one in results)


def test_weights_that_the_caller_changes_are_merged_again() -> None:
    meta = made("resident")
    with torch.no_grad():
        for weight in meta.weights():
            weight.clamp_(-0.01, 0.01)
    torch.testing.assert_close(*answers(meta))


def renorm(module: nn.Module, _: Any) -> None:
    """As ``nn.Embedding(max_norm=...)`` does."""
    with torch.no_grad():
        module.weight.mul_(0.5)


def test_layerwise_refuses_a_backbone_that_changes_its_weights() -> None:
    net = Net()
    net.blocks[0].a.register_forward_pre_hook(renorm)
    meta = MetaModel(net, make_pool(net), mode="layerwise")
    meta.coefficients.requires_grad_(False)  # else torch itself refuses
    with pytest.raises(MdftError, match="a weight must stay as it is merged, got one that the"):
        meta.encode(images().requires_grad_())


@pytest.mark.parametrize("name", ["vectors", "base", "mode", "layout"])
def test_what_would_not_be_noticed_is_refused(name: str) -> None:
    meta = made("resident")
    with pytest.raises(MdftError, match=f"meta-model: {name} must stay"):
        setattr(meta, name, getattr(meta, name))


# ---- λ


class Clamp(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.clamp(0, 1)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class Logistic(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.sigmoid()

    def right_inverse(self, w: Tensor) -> Tensor:
        return w.logit()


class OneWay(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.square()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Clamp, Logistic])
def test_parametrized_coefficients_are_written_through(kind: type[nn.Module], mode: str) -> None:
    meta = made(mode)
    task = meta.pool.names[0]
    with meta.using(meta.individual(task)):
        wanted = answers(meta)[0]
    parametrize.register_parametrization(meta, "coefficients", kind())
    (original,) = meta.parametrizations.coefficients.parameters(recurse=False)
    before = original.detach().clone()
    with meta.using(meta.individual(task)):
        torch.testing.assert_close(answers(meta)[0], wanted)
    assert torch.equal(original, before)  # bit for bit
    meta.set_coefficients(0.9)
    assert (meta.coefficients - 0.9).abs().max() < 1e-6
    meta.encode(images()).sum().backward()
    assert original.grad is not None


def test_what_a_parametrization_cannot_give_is_refused() -> None:
    meta = made("resident")
    parametrize.register_parametrization(meta, "coefficients", Clamp())
    with pytest.raises(MdftError, match=r"must give what is set, got values up to 0\.5 away"):
        meta.set_coefficients(1.5)
    assert (meta.coefficients == meta.coefficients[0, 0]).all()  # as before
    parametrize.remove_parametrizations(meta, "coefficients")
    parametrize.register_parametrization(meta, "coefficients", OneWay())
    with pytest.raises(MdftError, match=r"must give what is set, got .*right_inverse"):
        meta.set_coefficients(0.3)


def test_pruned_coefficients_are_refused() -> None:
    meta = made("resident")
    prune.l1_unstructured(meta, "coefficients", 0.5)
    with (
        pytest.raises(MdftError, match=r"must be a parameter, or .*parametrize, got Tensor"),
        meta.using(0.3),
    ):
        raise AssertionError


def test_learning_refuses_parametrized_coefficients(world: World) -> None:
    meta = world.meta()
    parametrize.register_parametrization(meta, "coefficients", Clamp())
    with pytest.raises(MdftError, match="coefficients: must be a plain parameter to be learned"):
        construct(meta, world.tasks, ConstructConfig(steps=1))


# ---- threads


def in_threads(count: int, work: Callable[[], None]) -> list[str]:
    errors: list[str] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize(
    "options",
    [{"mode": "resident"}, {"mode": "layerwise"}, {"mode": "layerwise", "checkpointing": True},
     {"mode": "resident", "checkpointing": True}],
)  # fmt: skip
def test_threads_take_turns_forward_and_backward(options: dict[str, Any]) -> None:
    meta = made(**options)
    x = images(8)

    def derive() -> Tensor:
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(meta.encode(y).square().sum(), y)
        return grad

    wanted = derive()
    wrong = []

    def work() -> None:
        for _ in range(25):
            wrong.append(not torch.equal(derive(), wanted))

    assert in_threads(4, work) == []
    assert not any(wrong)


def test_another_threads_coefficients_are_refused() -> None:
    meta = made("resident")
    with meta.using(0.7):
        for call in (lambda: meta.encode(images()), lambda: meta.set_coefficients(0.1)):
            (error,) = in_threads(1, call)
            assert "λ must be one for all threads, got a call while `using` holds" in error
        with meta.using(0.8):
            meta.encode(images())
    assert in_threads(1, lambda: meta.encode(images())) == []


def test_a_copy_is_free() -> None:
    meta = made("layerwise")
    with meta.using(0.7):
        other = copy.deepcopy(meta)
    assert in_threads(1, lambda: other.encode(images())) == []
    assert torch.equal(other.encode(images()), copy.deepcopy(other).encode(images()))
