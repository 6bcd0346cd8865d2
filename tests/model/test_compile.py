# SPDX-License-Identifier: Apache-2.0
"""A compiled backbone: the same numbers, one graph for every λ, and nothing compiled that leaves.

``aot_eager`` traces forward and backward as any backend would, and runs them without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mdft_fast import MdftError, MetaModel
from tests.model.test_modes import clip_vit, gradient, images, make_pool, timm_vit
from tests.world import Encoder


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def assert_near(got: Tensor, wanted: Tensor) -> None:
    """Traced operators may be replaced by others that round elsewhere: float32's round-off."""
    assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("make", [timm_vit, clip_vit], ids=["timm", "open_clip"])
def test_same_features_and_gradient_and_one_graph_for_every_coefficient(
    make: Callable[[], nn.Module],
) -> None:
    backbone = make()
    pool = make_pool(backbone)
    compiled, plain = MetaModel(backbone, pool), MetaModel(backbone, pool)
    compiled.compile(backend="aot_eager", fullgraph=True)
    graphs = []
    for value in (0.3, -0.2, [0.1, 0.5, 0.9]):
        results = []
        for meta in (compiled, plain):
            meta.set_coefficients(value)
            results.append(gradient(meta))
        (features, grad), (wanted_features, wanted_grad) = results
        assert_near(features, wanted_features)
        assert_near(grad, wanted_grad)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 1, 1]
    assert not counters["graph_break"]


def test_what_leaves_is_plain() -> None:
    backbone = Encoder()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    meta = MetaModel(backbone, make_pool(backbone))
    meta.compile(backend="aot_eager")
    with torch.no_grad():
        features = meta.encode(images())
        module = meta.materialize()
        assert type(module) is type(backbone)
        assert set(module.state_dict()) == set(before)
        counters.clear()
        assert_near(module(images()), features)
        assert not counters["stats"]  # it ran as it is
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert [name for name, _ in meta.named_parameters()] == ["coefficients"]


def test_stays_compiled_where_it_is_moved() -> None:
    backbone = Encoder()
    meta = MetaModel(backbone, make_pool(backbone))
    meta.compile(backend="aot_eager")
    meta.to("cpu")
    gradient(meta)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"mode": "layerwise"}, "'layerwise'"),
        ({"mode": "streamed"}, "'streamed'"),
        ({"checkpointing": True}, "checkpointing"),
    ],
)
def test_refuses_what_would_cut_the_graph(options: dict[str, object], got: str) -> None:
    backbone = Encoder()
    meta = MetaModel(backbone, make_pool(backbone), **options)  # type: ignore[arg-type]
    with pytest.raises(MdftError, match=f"needs mode 'resident' without checkpointing, got {got}"):
        meta.compile()


@pytest.mark.parametrize("mode", ["resident", "layerwise", "streamed"])
def test_a_whole_model_may_be_compiled_by_its_user(mode: str) -> None:
    """With breaks between graphs; ranges of tiles differ from piece to piece."""
    backbone = Encoder()
    meta = MetaModel(backbone, make_pool(backbone), mode=mode)  # type: ignore[arg-type]
    wanted = meta.encode(images())
    assert_near(torch.compile(meta.encode, backend="aot_eager")(images()), wanted)
