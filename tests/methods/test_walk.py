# SPDX-License-Identifier: Apache-2.0
"""The walk over backbones of many kinds: what it finds, and that watching changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import arguments_of
from mdft_fast.methods import Calibrate, explain_walk
from mdft_fast.methods.walk import Walk, walk_layers
from tests.methods.made_backbones import (
    BACKBONES,
    Case,
    make_backbone_case,
    make_case,
    plain_cnn,
    seeded,
)

FOUND = Path(__file__).with_name("found_layers.txt")
# Attention in another form; all others keep their bits.
ROUNDED = ("open_clip", "open_clip layer scale", "old CLIP", "torch, norm first",
           "torch, norm behind")  # fmt: skip


@pytest.fixture(params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return make_backbone_case(name)


def walk_of(case: Case) -> Walk:
    walk = Walk(case.pool, case.backbone, case.inputs)
    walk.install({name: walk.base(name) for name in walk.names})
    return walk


def hooks_of(module: nn.Module) -> int:
    parts = list(module.modules())
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def test_what_is_found(name: str, case: Case) -> None:
    """Layers, their order, writers, positions, and what gets the mean: as a reader sees them."""
    found = dict(part.split("\n", 1) for part in FOUND.read_text().split("# ")[1:])
    inputs = case.inputs if name == "GPT-2's Conv1D" else ()  # the rest: no samples are needed
    assert explain_walk(case.pool, case.backbone, inputs) == found[name].strip()


@torch.no_grad()
def test_an_observed_forward_is_the_plain_one(name: str, case: Case) -> None:
    walk = walk_of(case)
    for k, inputs in enumerate(case.inputs):
        (batch,) = inputs.batches(99)
        args, kwargs = arguments_of(batch)
        plain = case.model(k)(*args, **kwargs)
        with walk.as_teacher(k, walk.names):
            whole = walk.module(*args, **kwargs)
            call = walk.enter(batch)
            for structure in walk.structures():
                _, output = walk.run(structure.block, call, [])
                call = call.following(output)
        torch.testing.assert_close(whole, plain, **({} if name in ROUNDED else EXACT))
        walked = output if walk.why_whole else call.stream
        own = last_block(case.model(k), walk.blocks[-1], batch)
        torch.testing.assert_close(walked, own, **({} if name in ROUNDED else EXACT))


EXACT = {"rtol": 0, "atol": 0}


def last_block(module: nn.Module, block: str, batch: Tensor | dict[str, Tensor]) -> Tensor:
    seen = []

    def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, None]) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    module.get_submodule(block).register_forward_hook(hook)
    args, kwargs = arguments_of(batch)
    module(*args, **kwargs)
    return seen[0]


@torch.no_grad()
def test_a_layers_turn_shows_what_a_plain_pass_shows(name: str, case: Case) -> None:
    """With task 1's weights in the merged stream, each layer's pairs are its own x and y."""
    walk = walk_of(case)
    walk.install(walk.teacher(1, walk.names))
    for keep in (True, False):
        for turn in walk_layers(walk, batch=4, keep=keep, repair=True, watch=lambda *_: None):
            weight, bias = walk.own_layer(1, turn.site.layer)
            for x, y in turn.pairs(1):
                own = nn.functional.linear(x, weight, bias)
                torch.testing.assert_close(y, own, rtol=1e-3, atol=1e-4)
            positions = torch.ones(len(turn.site.positions))
            gram, cross = turn.moments(1, positions)
            pairs = [(x.flatten(0, 1).double(), y.flatten(0, 1).double()) for x, y in turn.pairs(1)]
            x, y = (torch.cat(part) for part in zip(*pairs, strict=True))
            x = x if bias is None else torch.cat([x, torch.ones(len(x), 1).double()], 1)
            torch.testing.assert_close(gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cross.double(), x.T @ y, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_callers_is_changed(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.backbone.state_dict().items()}
    hooks, names = hooks_of(case.backbone), [name for name, _ in case.backbone.named_modules()]
    pool = case.pool.vectors.codes.clone(), case.pool.base.clone()
    rng = torch.get_rng_state()
    case.merged(Calibrate(batch=4, samples=6))
    assert hooks_of(case.backbone) == hooks
    assert [name for name, _ in case.backbone.named_modules()] == names
    assert all(part.__dict__.get("forward") is None for part in case.backbone.modules())
    for name, tensor in case.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(case.pool.vectors.codes, pool[0])
    assert torch.equal(case.pool.base, pool[1])
    assert torch.equal(torch.get_rng_state(), rng)


def test_hooks_are_gone_after_an_error() -> None:
    walk = walk_of(make_backbone_case("open_clip"))
    call = walk.enter(next(walk.inputs[0].batches(2)))
    block = walk.blocks[0]
    walk.module.get_submodule(block).mlp.c_proj.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        walk.run(block, call, [])
    assert hooks_of(walk.module) == 1


def _fail(*_: object) -> None:
    raise RuntimeError("on purpose")


def test_one_input_of_one_task_is_enough_to_look_around() -> None:
    case = make_backbone_case("timm class token", K=1, n=1)
    many = make_backbone_case("timm class token")
    own = explain_walk(case.pool, case.backbone, case.inputs)
    assert own == explain_walk(many.pool, many.backbone)


def test_a_bias_that_is_not_merged_is_taken_off() -> None:
    def make() -> nn.Module:
        module = plain_cnn()
        for part in (module.first, module.out):
            nn.init.constant_(part.bias, 5.0)
            part.bias.requires_grad_(False)
        return module

    case = make_case(seeded(make), K=1, n=30)
    walk = walk_of(case)
    assert [layer.bias for layer in walk.layers] == [None, "second.bias", None]
    made = case.merged(Calibrate(fisher=0.0, epsilon=1e-6))
    images = case.tasks[0].samples.tensors
    torch.testing.assert_close(case.made(made)(images), case.model(0)(images), rtol=1e-2, atol=1e-2)


def test_positions_that_vary_are_refused_in_words() -> None:
    class Ragged:
        def __len__(self) -> int:
            return 4

        def batch(self, indices: Tensor, device: torch.device) -> dict[str, Tensor]:
            length = 7 if 0 in indices else 6
            ids = torch.arange(length).expand(len(indices), -1)
            return {"ids": ids, "gain": torch.ones(len(indices), 1, 1)}

        def digests(self) -> None:
            return None

    case = make_backbone_case("GPT-2's Conv1D", K=1)
    object.__setattr__(case.tasks[0], "samples", Ragged())
    from mdft_fast import MdftError

    with pytest.raises(MdftError, match="must see 7 positions in every input, got 6"):
        case.merged(Calibrate(batch=2, fisher=0.0))
