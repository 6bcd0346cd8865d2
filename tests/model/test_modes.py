# SPDX-License-Identifier: Apache-2.0
"""Memory modes, checkpointing and precision: the same numbers, less alive at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from mdft_fast import MdftError, MetaModel, Pool
from mdft_fast.app.forecast import LiveBytes
from mdft_fast.arena import TILE
from mdft_fast.model.feeds import StagedFeed
from mdft_fast.model.layerwise import Layerwise
from mdft_fast.pool import Head
from tests.world import Encoder

SIZE = 16
MODES = ("resident", "layerwise", "streamed")
Made = dict[str, tuple[nn.Module, Pool]]


def timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=32, depth=3, num_heads=2,
        num_classes=0,
    )  # fmt: skip


def clip_vit() -> nn.Module:
    return open_clip.transformer.VisionTransformer(SIZE, 4, 32, 3, 2, 4.0, output_dim=16)


class Tied(nn.Module):
    """Two blocks that share a tensor, between a stem and a tail."""

    calls = 1

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * SIZE * SIZE, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.blocks[1].weight = self.blocks[0].weight
        self.tail = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.calls * [*self.blocks]:
            x = block(x.tanh())
        out: Tensor = self.tail(x)
        return out


class Loop(Tied):
    """Calls its blocks twice, the second time with the block's result returned as it is."""

    calls = 2


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "timm": timm_vit,
    "open_clip": clip_vit,
    "cnn": Encoder,
    "tied": Tied,
    "loop": Loop,
}


def make_pool(backbone: nn.Module, K: int = 3, codec: str = "fp32") -> Pool:
    generator = torch.Generator().manual_seed(0)
    base = {k: v.half().float() for k, v in backbone.state_dict().items()}
    named = backbone.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in named if parameter.requires_grad}
    noise = [{k: torch.randn(v.shape, generator=generator) for k, v in base.items()}
             for _ in range(K)]  # fmt: skip
    for own in noise:  # ties stay ties
        for name, value in base.items():
            own[name] = next(own[k] for k, v in base.items() if torch.equal(v, value))
    models = [
        {k: (v + 0.05 * own[k]).half().float() if k in trained else v for k, v in base.items()}
        for own in noise
    ]
    with torch.no_grad():
        features = backbone(images()).shape[1]
    head = Head(torch.ones(2, features))
    tasks = [SimpleNamespace(name=f"task{k}", class_names=["a", "b"], head=head) for k in range(K)]
    return Pool.from_checkpoints(
        base, models, tasks, backbone=backbone, preprocess={"size": SIZE, "mean": 0, "std": 1},
        codec=codec,
    )  # fmt: skip


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def gradient(meta: MetaModel, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features and dL/dλ of a loss in which every output counts."""
    meta.coefficients.grad = None
    features = meta.encode(images() if x is None else x)
    features.square().sum().backward()
    return features.detach(), meta.coefficients.grad.clone()


@pytest.fixture(scope="module")
def made() -> Made:
    torch.manual_seed(0)
    backbones = {name: make().eval() for name, make in BACKBONES.items()}
    return {name: (backbone, make_pool(backbone)) for name, backbone in backbones.items()}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_mode_gives_the_same_bits(
    made: Made, name: str, mode: str, checkpointing: bool
) -> None:
    features, grad = gradient(MetaModel(*made[name]))
    meta = MetaModel(*made[name], mode=mode, checkpointing=checkpointing)
    again, other = gradient(meta)
    assert torch.equal(features, again)
    if name in ("tied", "loop"):  # a tensor's gradient is the sum of several dots, not their dot
        torch.testing.assert_close(other, grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))
    else:
        assert torch.equal(grad, other)
    assert all(torch.equal(a, b) for a, b in zip(gradient(meta), (again, other), strict=True))


@pytest.mark.parametrize("name", ["timm", "cnn"])
@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_every_mode_gives_the_same_bits_by_row(made: Made, name: str, codec: str) -> None:
    backbone = made[name][0]
    pool = made[name][1] if codec == "fp32" else make_pool(backbone, codec=codec)
    drawn: Tensor | float = 0.3
    features: list[Tensor] = []
    for mode, checkpointing in itertools.product(MODES, (False, True)):
        meta = MetaModel(
            backbone, pool, granularity="row", start=drawn, mode=mode, checkpointing=checkpointing
        )
        if isinstance(drawn, float):
            drawn = torch.rand(meta.coefficients.shape, generator=torch.Generator().manual_seed(4))
            meta.set_coefficients(drawn)
        got = gradient(meta)
        features = features or list(got)
        assert all(map(torch.equal, got, features))
    staged = StagedFeed(pool.base, pool.vectors, meta.layout, (), torch.device("cpu"))
    assert staged._layouts == {}


@pytest.mark.parametrize("granularity", ["task", "block"])
def test_coarse_columns_differ_by_the_order_of_sums_alone(made: Made, granularity: str) -> None:
    options = {"granularity": granularity}
    _, grad = gradient(MetaModel(*made["timm"], **options))
    _, other = gradient(MetaModel(*made["timm"], **options, mode="layerwise"))
    # A column's tiles are added in float64 in either case, then rounded to float32 once a piece:
    # 5 pieces, each at most the sum of the sizes.
    bound = 6 * 2.0**-24 * grad.abs().max() * 10
    torch.testing.assert_close(other, grad, rtol=0, atol=float(bound))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_in_x_alone(made: Made, mode: str, checkpointing: bool) -> None:
    grads = []
    for options in ({}, {"mode": mode, "checkpointing": checkpointing}):
        meta = MetaModel(*made["open_clip"], **options)
        meta.coefficients.requires_grad_(False)
        x = images().requires_grad_()
        meta.encode(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("mode", ["layerwise", "streamed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_before_one_backward(made: Made, mode: str, checkpointing: bool) -> None:
    meta = MetaModel(*made["timm"], mode=mode, checkpointing=checkpointing)
    first, second = images(2), images(4)[2:]
    wanted = gradient(meta, first)[1] + gradient(meta, second)[1]
    meta.coefficients.grad = None
    (meta.encode(first).square().sum() + meta.encode(second).square().sum()).backward()
    torch.testing.assert_close(meta.coefficients.grad, wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_uses_the_coefficients_of_its_own_forward(made: Made, checkpointing: bool) -> None:
    meta = MetaModel(*made["timm"], mode="layerwise", checkpointing=checkpointing)
    _, wanted = gradient(meta)
    meta.coefficients.grad = None
    loss = meta.encode(images()).square().sum()
    meta.set_coefficients(0.7)
    with torch.no_grad():
        meta.encode(images())
    loss.backward()
    assert torch.equal(meta.coefficients.grad, wanted)


class Watch(LiveBytes):
    """Live bytes whenever a block begins, in forward and in backward."""

    def __init__(self, meta: MetaModel) -> None:
        super().__init__()
        self.seen: list[int] = []
        for name in meta._blocks:
            block = meta._backbone.get_submodule(name)
            block.register_forward_pre_hook(lambda *_: self.seen.append(self.now))
            block.register_full_backward_pre_hook(lambda *_: self.seen.append(self.now))


def test_nothing_of_a_block_outlives_it(made: Made) -> None:
    backbone, pool = made["timm"]
    meta = MetaModel(backbone, pool, mode="layerwise", checkpointing=True)
    runner = meta._runner
    assert isinstance(runner, Layerwise)
    largest = 4 * max(piece.elements for piece in (runner._outside, *runner._blocks))
    one = images(1)
    with Watch(meta) as watch:
        meta.encode(one).sum().backward()
    # One buffer as large as the largest piece, and x of [1, 17, 32] at each of 3 block inputs with
    # its gradient: 14 KB. A block's weights are 53 KB, and so are its gradients.
    assert len(watch.seen) == 6
    assert max(watch.seen) <= largest + 4 * 1024 * 14
    assert largest + 4 * 1024 * 14 < 2 * largest
    # In "resident" all weights live at every boundary.
    meta = MetaModel(backbone, pool, checkpointing=True)
    with Watch(meta) as watch:
        meta.encode(one).sum().backward()
    assert min(watch.seen) >= 4 * pool.N


class Nested(nn.Module):
    """Tensors named as transformers names a CLIP vision model's."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Linear(3 * SIZE * SIZE, 16)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.post_layernorm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x.flatten(1))
        for layer in self.encoder.layers:
            x = layer(x).tanh()
        out: Tensor = self.post_layernorm(x)
        return out


def test_blocks_are_found_by_the_numbers_in_names(made: Made) -> None:
    found = {
        name: MetaModel(*made[name], mode="layerwise")._blocks for name in ("timm", "open_clip")
    }
    assert found["timm"] == ("blocks.0", "blocks.1", "blocks.2")
    assert found["open_clip"] == tuple(f"transformer.resblocks.{i}" for i in range(3))
    backbone = Nested()
    pool = make_pool(backbone)
    meta = MetaModel(backbone, pool, mode="layerwise")
    assert meta._blocks == tuple(f"encoder.layers.{i}" for i in range(3))
    assert torch.equal(gradient(meta)[1], gradient(MetaModel(backbone, pool))[1])


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_staged_through_two_buffers(made: Made, codec: str, checkpointing: bool) -> None:
    """The feed for GPUs, run on the CPU: two buffers, one block ahead, the same bits."""
    backbone, pool = made["open_clip"]
    pool = pool.encode(codec)
    wanted = gradient(MetaModel(backbone, pool))
    meta = MetaModel(backbone, pool, mode="streamed", checkpointing=checkpointing)
    runner = meta._runner
    assert isinstance(runner, Layerwise)
    pieces = (runner._outside, *runner._blocks)
    feed = StagedFeed(pool.base, pool.vectors, meta.layout, pieces, torch.device("cpu"))
    fetched: list[str] = []
    copy = feed._copy
    feed._copy = lambda piece: (fetched.append(piece.name), copy(piece))[1]  # type: ignore
    runner._feed = feed
    got = gradient(meta)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert len(feed._slots) <= 2
    blocks = [piece.name for piece in runner._blocks]
    # Forward, the tail, and back; what a turn finds in a buffer is not fetched again.
    assert fetched == ["", *blocks, "", blocks[1], blocks[0], ""]


def test_teachers_and_materialize_agree_in_every_mode(made: Made) -> None:
    for mode, precision in itertools.product(MODES, ("fp32", "bf16")):
        meta = MetaModel(*made["timm"], mode=mode, precision=precision)
        plain = meta.materialize()
        assert not any(hasattr(m, "forward") and "forward" in vars(m) for m in plain.modules())
        with torch.no_grad():
            out = plain(images())
            tolerance = 0 if precision == "fp32" else 0.05 * float(out.abs().max())
            torch.testing.assert_close(meta.encode(images()), out, rtol=0, atol=tolerance)
            with meta.using(meta.individual("task1")):
                assert len(meta.weights()) == len(meta.layout.slots)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_rounds_weights_once_and_keeps_float32_outside(made: Made, mode: str) -> None:
    exact = MetaModel(*made["timm"])
    meta = MetaModel(*made["timm"], mode=mode, precision="bf16")
    for weight, wanted in zip(meta.weights(), exact.weights(), strict=True):
        assert torch.equal(weight, wanted.bfloat16())
    features, grad = gradient(meta)
    assert features.dtype == grad.dtype == meta.coefficients.dtype == torch.float32
    _, wanted = gradient(exact)
    assert torch.cosine_similarity(grad.flatten(), wanted.flatten(), dim=0) > 0.99


def test_named_blocks(made: Made) -> None:
    backbone, pool = made["timm"]
    _, wanted = gradient(MetaModel(backbone, pool))
    for blocks, number in ((["blocks"], 3), (["blocks", "norm"], 4)):
        meta = MetaModel(backbone, pool, mode="layerwise", blocks=blocks)
        assert len(meta._blocks) == number
        assert torch.equal(gradient(meta)[1], wanted)


def test_blocks_that_do_not_work(made: Made) -> None:
    def make(blocks: list[str]) -> MetaModel:
        return MetaModel(*made["timm"], mode="layerwise", blocks=blocks)

    with pytest.raises(MdftError, match=r"got 'block'; did you mean 'blocks'"):
        make(["block"])
    with pytest.raises(MdftError, match=r"hold each other, got 'blocks.0.attn' in 'blocks.0'"):
        make(["blocks.0.attn", "blocks"])
    with pytest.raises(MdftError, match="needs blocks, got a backbone without numbered modules"):
        make([])

    for blocks, name in ((["patch_embed", "blocks"], "cls_token"),
                         (["blocks.0", "blocks.2"], "blocks.1.norm1.weight")):  # fmt: skip
        with pytest.raises(MdftError, match=f"{name} is used .* between two blocks"):
            make(blocks).encode(images())

    class Skips(Tied):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.blocks[0](self.stem(x.flatten(1)))
            return out

    torch.manual_seed(0)
    backbone = Skips()
    meta = MetaModel(backbone, make_pool(backbone), mode="layerwise")
    with pytest.raises(
        MdftError, match=r"must call each of its 2 blocks, got no call of 'blocks.1"
    ):
        meta.encode(images())
    assert "forward" not in vars(meta._backbone.get_submodule("blocks.0"))
    assert all(p is None for m in meta._backbone.modules() for p in m._parameters.values())


def test_autocast_is_refused_outside_of_resident(made: Made) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        MetaModel(*made["timm"]).encode(images())
        with pytest.raises(MdftError, match="autocast must be off in mode 'layerwise', got it on"):
            MetaModel(*made["timm"], mode="layerwise").encode(images())


def test_the_buffer_is_given_up_where_a_block_returns_a_part_of_it() -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(16))

        def forward(self) -> Tensor:
            return self.token

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Prompt(), nn.Linear(16, 16)])
            self.tail = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            token = self.blocks[0]()
            out: Tensor = self.tail(self.blocks[1](x.flatten(1)[:, :16])) + token
            return out

    torch.manual_seed(0)
    backbone = Returns()
    pool = make_pool(backbone)
    wanted = gradient(MetaModel(backbone, pool))
    got = gradient(MetaModel(backbone, pool, mode="layerwise"))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_largest_piece_sets_the_buffer(made: Made) -> None:
    meta = MetaModel(*made["timm"], mode="layerwise")
    meta.encode(images())
    runner = meta._runner
    assert isinstance(runner, Layerwise)
    assert runner._buffer.numel() % TILE == 0
    assert runner._buffer.numel() < meta.pool.N / 2


@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_leaves_training_as_it_was(made: Made, mode: str) -> None:
    meta = MetaModel(*made["timm"], mode=mode)
    with torch.inference_mode():
        first = meta.encode(images()).clone()
    features, grad = gradient(meta)
    assert torch.equal(features, first)
    assert torch.equal(grad, gradient(MetaModel(*made["timm"]))[1])


def test_a_failing_block_leaves_the_model_as_it_was(made: Made) -> None:
    meta = MetaModel(*made["timm"], mode="layerwise")
    wanted = gradient(meta)
    with pytest.raises(RuntimeError):
        meta.encode(torch.randn(2, 5, SIZE, SIZE))  # five channels
    handle = meta._backbone.get_submodule("blocks.1.mlp").register_forward_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        meta.encode(images())
    handle.remove()
    assert all(p is None for m in meta._backbone.modules() for p in m._parameters.values())
    assert not any("forward" in vars(m) for m in meta._backbone.modules())
    assert all(torch.equal(a, b) for a, b in zip(gradient(meta), wanted, strict=True))
