# SPDX-License-Identifier: Apache-2.0
"""What holds for every method of the table: degenerate pools, codecs, bits, no side effects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast import Pool
from mdft_fast.arena import CODECS, Codec
from mdft_fast.methods import METHODS, Method, apply
from tests.methods.made_pools import SHAPES, backbone, draw, make_pool, tensors

# Those that look at inputs have tests of their own.
BY_TENSOR = [method for method in METHODS.values() if "inputs" not in method.needs]
TRANSFORMS = [method for method in BY_TENSOR if method.kind == "transform"]
NAME = lambda method: method.name  # noqa: E731

# Fields with which a transform leaves a pool whose vectors all agree as it is.
WHOLE: Mapping[str, Mapping[str, object]] = {
    "ties": {"density": 1.0},
    "lines": {"alpha": 1.0, "beta": 0.0},
    "dare": {"density": 1.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0},
    "negmerge": {"negate": False},
    "consensus": {},
    "half": {"share": 1.0},
    "lowrank": {"energy": 1.0},
}


def one() -> dict[str, Tensor]:
    return draw(1, seed=7)


def stacked(*factors: float) -> dict[str, Tensor]:
    """Returns vectors that are multiples of one."""
    return {
        name: torch.cat([factor * tensor for factor in factors]) for name, tensor in one().items()
    }


DEGENERATE = {
    "one": one(),
    "equal": stacked(1, 1, 1),
    "zero": stacked(0, 0),
    "one of them zero": stacked(1, 0),
    "opposite": stacked(1, -1),
    "constant": {name: torch.ones(2, *shape) for name, shape in SHAPES.items()},
    "more vectors than rows": draw(9),
}


@pytest.fixture(scope="module", autouse=True)
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of masks, which ``GIVEN`` names."""
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    save_file({name: tensor[0] > 0 for name, tensor in draw(1, seed=5).items()}, path)
    GIVEN["mask"] = {"file": path}
    return path


GIVEN: dict[str, dict[str, object]] = {}  # fields without a default


def run(method: type[Method], pool: Pool, **fields: object) -> Pool:
    made = method(**GIVEN.get(method.name, {}), **fields)
    return apply(pool, [made], backbone=backbone() if "layers" in method.needs else None)


@pytest.mark.parametrize("deltas", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("method", BY_TENSOR, ids=NAME)
def test_degenerate_pools(method: type[Method], deltas: Mapping[str, Tensor]) -> None:
    pool = make_pool(deltas)
    made = run(method, pool)  # which refuses what is not finite
    before, after = pool.vectors.decode(), made.vectors.decode()
    if method.kind == "merge":
        before = before.abs().sum(0, keepdim=True)
        assert made.K == 1
    assert len(before) == len(after)
    assert not after[~before.any(1)].any()  # nothing is made of nothing


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", BY_TENSOR, ids=NAME)
def test_in_every_codec_what_is_stored_is_changed_and_stored(
    method: type[Method], codec: Codec
) -> None:
    pool = make_pool(draw(3), codec)
    before = pool.vectors.codes.clone()
    made = run(method, pool)
    exact = run(method, make_pool(tensors(pool)))  # the same numbers, nothing rounded behind
    assert made.codec == codec
    assert made.checksum == exact.encode(codec).checksum == run(method, pool).checksum
    assert torch.equal(pool.vectors.codes, before)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", WHOLE)
def test_what_stays_whole_keeps_its_bits(name: str, codec: Codec) -> None:
    pool = make_pool(stacked(1, 0.5, 2), codec)
    assert run(METHODS[name], pool, **WHOLE[name]).checksum == pool.checksum


@pytest.mark.parametrize("method", TRANSFORMS, ids=NAME)
def test_the_order_of_vectors_is_all_that_changes_with_it(method: type[Method]) -> None:
    if any(field == "seed" for field in method.__dataclass_fields__):
        pytest.skip("draws go by a vector's number")
    deltas, order = draw(4), torch.tensor([2, 0, 3, 1])
    made = tensors(run(method, make_pool(deltas)))
    turned = tensors(run(method, make_pool({n: t[order] for n, t in deltas.items()})))
    # Sums have an order, so a weight of pcb may differ by a rounding.
    for name, tensor in made.items():
        assert torch.allclose(turned[name], tensor[order], rtol=1e-6, atol=0), name


@pytest.mark.parametrize("method", BY_TENSOR, ids=NAME)
def test_no_global_generator_is_read_or_moved(method: type[Method]) -> None:
    pool = make_pool(draw(2))
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), run(method, pool)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert run(method, pool).checksum == first.checksum
