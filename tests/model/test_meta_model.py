# SPDX-License-Identifier: Apache-2.0
"""MetaModel: the method's oracles 1, 2 and 4, and what it promises about the caller's things."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mdft_fast import MdftError, MetaModel, Pool, Task
from mdft_fast.model import MODES, Mode, build_backbone
from mdft_fast.ops import _merge
from mdft_fast.pool import Head, features_of
from tests.world import PREPROCESS, Encoder, World, make_world


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def merged_by_hand(world: World, meta: MetaModel) -> dict[str, torch.Tensor]:
    """Equation (1) tensor by tensor in float64, λ of each row beside its elements."""
    columns = {}
    for slot in meta.layout.slots:
        rows = meta.coefficients.detach().double()[:, slot.column : slot.column + slot.rows]
        columns[slot.name] = rows.reshape(len(rows), -1, *[1] * max(0, len(slot.shape) - 1))
    return {
        name: world.base[name].double()
        + sum(
            columns[name][k] * (state[name].double() - world.base[name].double())
            for k, state in enumerate(world.models)
        )
        for name in columns
    }


@pytest.mark.parametrize("granularity", ["task", "block", "tensor", "row"])
def test_merges_what_the_equation_says(world: World, granularity: str) -> None:
    meta = world.meta(granularity=granularity)
    start = torch.randn(meta.coefficients.shape, generator=torch.Generator().manual_seed(2))
    meta.set_coefficients(start)
    by_hand = merged_by_hand(world, meta)
    with torch.no_grad():
        for slot, weight in zip(meta.layout.slots, meta.weights(), strict=True):
            torch.testing.assert_close(weight.double(), by_hand[slot.name], rtol=1e-6, atol=1e-6)


def test_granularity_sets_the_number_of_coefficients(world: World) -> None:
    assert list(world.meta(granularity="task").coefficients.shape) == [3, 1]
    block = world.meta(granularity="block")
    assert block.layout.columns == ("stem", "blocks.0", "blocks.1", "tail")
    assert list(world.meta().coefficients.shape) == [3, 10]
    rows = world.meta(granularity="row")
    assert list(rows.coefficients.shape) == [3, 8 + 1 + 2 * (8 + 1) + 1 + 1 + 16 + 1]
    assert rows.layout.columns == world.pool.layout.columns  # a name once, however many its rows


def test_oracle_1_unit_coefficients_give_each_model_bit_for_bit(world: World) -> None:
    meta = world.meta()
    for task, state in zip(world.tasks, world.models, strict=True):
        with meta.using(meta.individual(task.name)), torch.no_grad():
            for slot, weight in zip(meta.layout.slots, meta.weights(), strict=True):
                assert torch.equal(weight, state[slot.name]), (task.name, slot.name)
            own = functional_call(Encoder().eval(), state, images())
            assert torch.equal(meta.encode(images()), own)
            assert torch.equal(meta(images(), task.name), task.head(own))


def test_oracle_2_zero_gives_the_base_and_a_constant_task_arithmetic(world: World) -> None:
    meta = world.meta(start=0.0)
    with torch.no_grad():
        base = functional_call(Encoder().eval(), world.base, images())
        assert torch.equal(meta.encode(images()), base)
        meta.set_coefficients(0.3)
        arithmetic = {
            name: world.base[name] + 0.3 * sum(s[name] - world.base[name] for s in world.models)
            for name in world.base
        }
        expected = functional_call(Encoder().eval(), arithmetic, images())
        torch.testing.assert_close(meta.encode(images()), expected)


class ByKeyword(Encoder):
    def forward(self, *, pixels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(pixels[rows])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_may_be_arguments_by_keyword(world: World, mode: Mode, precision: str) -> None:
    rows = torch.tensor([2, 0])
    plain = world.meta(mode=mode, precision=precision)
    named = MetaModel(ByKeyword().eval(), world.pool, mode=mode, precision=precision)  # type: ignore[arg-type]
    logits = plain(images()[rows], "letters")
    again = named({"pixels": images(), "rows": rows}, "letters")
    assert torch.equal(logits, again)
    for out in (logits, again):
        out.square().sum().backward()
    assert torch.equal(plain.coefficients.grad, named.coefficients.grad)
    assert features_of(named._backbone, {"pixels": images(), "rows": rows}) is None  # no weights
    assert features_of(ByKeyword(), {"pixels": images().to("meta"), "rows": rows.to("meta")}) == 16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_no_batch(dtype: torch.dtype, world: World) -> None:
    with pytest.raises(MdftError, match=r"a batch must be floating, normalised .*got \[\d+, .* in"):
        world.meta().encode(images().to(dtype))


def test_oracle_4_gradient_is_the_dot_with_the_task_vector(world: World) -> None:
    meta = world.meta()
    meta.encode(images()).square().sum().backward()
    weights = {
        slot.name: weight.detach().clone().requires_grad_()
        for slot, weight in zip(meta.layout.slots, meta.weights(), strict=True)
    }
    out = functional_call(world.backbone, {**weights, "gain": world.base["gain"]}, images())
    out.square().sum().backward()
    for slot in meta.layout.slots:
        for k, state in enumerate(world.models):
            dot = (weights[slot.name].grad * (state[slot.name] - world.base[slot.name])).sum()
            got = meta.coefficients.grad[k, slot.column]
            torch.testing.assert_close(got, dot, rtol=1e-4, atol=1e-5)


def test_finite_differences_agree_with_the_gradient(world: World) -> None:
    meta = world.meta(granularity="task", start=[0.3, -0.2, 0.5])
    meta.encode(images()).square().mean().backward()
    for k in range(3):
        values = []
        for sign in (1, -1):
            at = meta.coefficients.detach().clone()
            at[k] += sign * 1e-2
            with meta.using(at), torch.no_grad():
                values.append(float(meta.encode(images()).double().square().mean()))
        slope = (values[0] - values[1]) / 2e-2
        assert abs(slope - float(meta.coefficients.grad[k])) < 2e-3 * max(1, abs(slope))


def test_coefficients_are_the_only_parameter_and_the_only_state(world: World) -> None:
    meta = world.meta()
    assert [name for name, _ in meta.named_parameters()] == ["coefficients"]
    assert list(meta.state_dict()) == ["coefficients"]


def test_the_callers_module_and_pool_are_never_changed(world: World) -> None:
    backbone = copy.deepcopy(world.backbone).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    base, codes = world.pool.base.clone(), world.pool.vectors.codes.clone()
    meta = MetaModel(backbone, world.pool)
    meta.encode(images()).sum().backward()
    meta.set_coefficients(2.0)
    meta.materialize()
    assert backbone.training
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(world.pool.base, base)
    assert torch.equal(world.pool.vectors.codes, codes)


def test_materialize_gives_a_plain_module_with_the_same_outputs(world: World) -> None:
    meta = world.meta()
    plain = meta.materialize()
    assert type(plain) is Encoder
    with torch.no_grad():
        assert torch.equal(plain(images()), meta.encode(images()))
    assert len(pickle.dumps(plain.state_dict())) < 4 * world.pool.parameters + 20_000  # no arena
    for parameter in plain.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert meta.encode(images()).abs().sum() > 0  # nothing is shared


def test_merges_once_while_the_coefficients_stand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = _merge._merge
    monkeypatch.setattr(_merge, "_merge", lambda *a: calls.append(1) or original(*a))
    meta = world.meta()
    total = sum(meta.encode(images(n)).sum() for n in (2, 3))
    assert len(calls) == 1
    total.backward()  # both graphs read one arena
    with torch.no_grad():
        meta.coefficients += 0.1
    meta.encode(images())
    assert len(calls) == 2


def test_a_graph_whose_weights_are_gone_raises(world: World) -> None:
    meta = world.meta()
    stale = meta.encode(images()).sum()
    meta.set_coefficients(0.7)
    meta.encode(images())
    with pytest.raises(RuntimeError, match="modified inplace"):
        stale.backward()


def test_a_gradient_needs_no_more_than_the_tensors_that_were_used(world: World) -> None:
    meta = world.meta()
    weights = dict(zip(meta.layout.columns, meta.weights(), strict=True))
    weights["out.bias"].sum().backward()
    used = meta.coefficients.grad.abs().sum(0) > 0
    assert [name for name, hit in zip(meta.layout.columns, used, strict=True) if hit] == [
        "out.bias"
    ]


def test_tied_weights_are_merged_once_and_installed_twice() -> None:
    class Tied(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[1].weight = self.blocks[0].weight

    world = make_world()
    backbone = Tied().eval()
    states = [dict(s) for s in (world.base, *world.models)]
    for state in states:
        state["blocks.1.weight"] = state["blocks.0.weight"]
    pool = Pool.from_checkpoints(
        states[0], states[1:], world.tasks, backbone=backbone, preprocess=PREPROCESS
    )
    assert "blocks.1.weight" in pool.left_out
    meta = MetaModel(backbone, pool, start=0.0)
    with torch.no_grad():
        expected = functional_call(Encoder().eval(), states[0], images())
        assert torch.equal(meta.encode(images()), expected)
    plain = meta.materialize()
    assert plain.blocks[0].weight is plain.blocks[1].weight


def test_moves_and_refuses_another_dtype(world: World) -> None:
    meta = world.meta().to("cpu")
    assert meta.coefficients.device.type == "cpu"
    with pytest.raises(MdftError, match=r"dtype must stay float32, got torch.float16"):
        meta.half()


def test_train_keeps_the_backbone_in_eval_mode(world: World) -> None:
    assert not world.meta().train()._backbone.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "tensors"}, r"granularity: must be one of .*'tensors'; did you mean"),
        ({"mode": "layerwize"}, r"mode must be one of .*'layerwize'; did you mean 'layerwise'"),
        ({"precision": "fp16"}, r"precision must be one of \['fp32', 'bf16'\], got 'fp16'"),
        ({"start": [0.3, 0.2]}, r"one number, 3 numbers or \[3, 10\], got \[2\]"),
        ({"start": float("nan")}, "must be finite"),
    ],
)
def test_options_that_do_not_exist(world: World, options: dict, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        world.meta(**options)


def test_unknown_task(world: World) -> None:
    with pytest.raises(MdftError, match=r"must be one of \['shapes', .*\], got 'mnist'"):
        world.meta()(images(), "mnist")


def test_unknown_libraries_and_arguments() -> None:
    with pytest.raises(MdftError, match=r"must be one of .*got 'tim'; did you mean 'timm'"):
        build_backbone({"library": "tim", "name": "x"})
    pytest.importorskip("timm")
    with pytest.raises(MdftError, match="timm does not build 'vit_nano'"):
        build_backbone({"library": "timm", "name": "vit_nano"})


def test_building_a_backbone_leaves_the_random_state_alone() -> None:
    pytest.importorskip("timm")
    before = torch.get_rng_state()
    build_backbone({"library": "timm", "name": "test_vit", "kwargs": {"num_classes": 0}})
    assert torch.equal(torch.get_rng_state(), before)


def test_an_open_clip_tower_goes_through_unchanged() -> None:
    open_clip = pytest.importorskip("open_clip")
    spec = {
        "library": "open_clip",
        "name": "VisionTransformer",
        "kwargs": {
            "image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 2,
            "mlp_ratio": 2.0, "output_dim": 12,
        },
    }  # fmt: skip
    tower = build_backbone(spec)
    assert isinstance(tower, open_clip.transformer.VisionTransformer)
    generator = torch.Generator().manual_seed(0)
    base = tower.state_dict()
    model = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
    task = Task("a", ["x", "y"], Head(torch.randn(2, 12)), torch.zeros(4, 16, 16, 3).byte())
    pool = Pool.from_checkpoints(
        base, [model], [task], backbone=tower, preprocess={"size": 16, "mean": 0.5, "std": 0.5}
    )
    meta = MetaModel(tower, pool, start=1.0)
    x = torch.randn(3, 3, 16, 16)
    tower.load_state_dict(model)
    features = meta.encode(x)
    torch.testing.assert_close(features, tower(x), rtol=1e-5, atol=1e-5)
    features.sum().backward()
    assert meta.coefficients.grad.abs().min() > 0


def test_the_real_pool_reproduces_its_accuracies(real_pool: Path) -> None:
    """On one task; examples/real_pool.yaml prints all of them."""
    pytest.importorskip("timm")
    from mdft_fast.app.opening import build
    from mdft_fast.app.recipe import Recipe

    recipe = Recipe.load(Path(__file__).parents[2] / "examples" / "real_pool.yaml", ["start=0.3"])
    built = build(recipe)
    from mdft_fast import evaluate

    meta = built.meta_model()
    (mnist,) = (task for task in built.tasks if task.name == "mnist")
    # Counted once with plain torch on these files: 205, 274 and 390 of 400.
    for value, right in ((0.0, 0.5125), (0.3, 0.685), (meta.individual("mnist"), 0.975)):
        with meta.using(value):
            assert evaluate(meta, [mnist]).accuracy["mnist"] == pytest.approx(right, abs=1e-6)


def test_fresh_weights_however_the_coefficients_were_changed(world: World) -> None:
    """A fused optimizer bumps no version, ``.data`` none either, and addresses come again."""
    meta = world.meta(start=0.3)

    def at(value: float) -> torch.Tensor:
        with torch.no_grad():
            return world.meta(start=value).encode(images())

    meta.encode(images())
    meta.coefficients.data.fill_(0.9)
    assert torch.equal(meta.encode(images()), at(0.9))
    optimizer = torch.optim.SGD([meta.coefficients], lr=1.0, fused=True)
    meta.coefficients.grad = torch.full_like(meta.coefficients, 0.5)
    optimizer.step()
    assert torch.equal(meta.encode(images()), at(float(meta.coefficients.detach()[0, 0])))
    for value in (0.5, 0.7):
        other = torch.full_like(meta.coefficients, value).requires_grad_()
        got = functional_call(meta, {"coefficients": other}, (images(), "signs"))
        torch.testing.assert_close(got, world.tasks[2].head(at(value)), rtol=0, atol=0)
        del other


def test_an_interrupted_merge_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = world.meta()
    with monkeypatch.context() as patch:
        patch.setattr(_merge, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            meta.encode(images())
    with torch.no_grad():
        assert torch.equal(meta.encode(images()), world.meta().encode(images()))


def test_inference_first_then_training(world: World) -> None:
    meta = world.meta()
    with torch.inference_mode():
        meta.encode(images())
    meta.encode(images()).sum().backward()
    assert meta.coefficients.grad.abs().sum() > 0


def test_a_copy_is_a_model_of_its_own(world: World) -> None:
    meta = world.meta()
    meta.encode(images()).sum().backward()
    twin = copy.deepcopy(meta)
    twin.set_coefficients(0.9)
    with torch.no_grad():
        assert torch.equal(twin.encode(images()), world.meta(start=0.9).encode(images()))
        assert torch.equal(meta.encode(images()), world.meta().encode(images()))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out", nn.Linear(8, 4), r"out.weight must be \[16, 8\] as in the pool, got \[4, 8"),
        ("extra", nn.Linear(2, 2), r"extra.weight must be absent, as in the pool, got \[2, 2"),
        ("gain", torch.ones(8), r"gain must be \[\], got \[8\]"),
    ],
)
def test_a_backbone_of_another_pool(world: World, name: str, value: object, message: str) -> None:
    backbone = Encoder()
    setattr(backbone, name, value)
    with pytest.raises(MdftError, match=message):
        MetaModel(backbone, world.pool)
