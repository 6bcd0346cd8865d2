# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdft_fast.arena import (
    CODECS,
    DTYPE_OF_CODEC,
    ERROR_OF_CODEC,
    GROUP,
    LARGEST_CODE,
    TILE,
    Codec,
    CodecError,
    Layout,
    TaskVectors,
    add_errors,
    codec_errors,
    encode,
)
from mdft_fast.arena.codecs import encode_piece
from mdft_fast.pool import Pool
from tests.pool.conftest import parts  # noqa: F401 (a fixture)

SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6)
INTEGERS: tuple[Codec, ...] = ("int8", "int4")
SMALLEST = torch.finfo(torch.float32).tiny


def bound(exact: Tensor, codec: Codec) -> Tensor:
    """Returns the largest error that a codec may make of each element, in float64."""
    if codec == "fp32":
        return torch.zeros(exact.shape, dtype=torch.float64)
    if codec in LARGEST_CODE:
        groups = exact.double().view(len(exact), -1, GROUP)
        largest = groups.abs().amax(-1, keepdim=True)
        # Half a step, whose size is itself rounded once; the quotient's and the product's rounding.
        step = (largest / LARGEST_CODE[codec] * (1 + 2.0**-24)).clamp(min=SMALLEST)
        allowed = step / 2 + largest * 2.0**-23 * (1 + 2.0**-24)
        return allowed.expand_as(groups).reshape(exact.shape)
    info = torch.finfo(DTYPE_OF_CODEC[codec])
    # Half a unit in the last place of a normal number, half the smallest step below them.
    return (exact.double().abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)


def groups_of(exponents: list[float], seed: int) -> Tensor:
    """Returns ``[1, len * GROUP]``: normal numbers, a group of each magnitude."""
    noise = torch.randn(len(exponents), GROUP, generator=torch.Generator().manual_seed(seed))
    return (noise.double() * 10.0 ** torch.tensor(exponents).double()[:, None]).float().view(1, -1)


@settings(max_examples=100, deadline=None)
@given(shapes=SHAPES, K=st.integers(1, 3), codec=st.sampled_from(CODECS), scale=st.integers(-30, 3))
def test_no_element_errs_by_more_than_half_a_step(
    shapes: list[tuple[int, ...]], K: int, codec: Codec, scale: int
) -> None:
    layout = Layout.of({f"t{i}": shape for i, shape in enumerate(shapes)})
    assert layout.elements % TILE == 0
    exact = (
        torch.randn(K, layout.elements, generator=torch.Generator().manual_seed(K)) * 10.0**scale
    )
    owners = [str(k) for k in range(K)]
    vectors, encoder = encode(TaskVectors(exact), codec, layout, owners)
    errors = (vectors.decode().double() - exact.double()).abs()
    assert (errors <= bound(exact, codec)).all()

    measured = codec_errors(TaskVectors(exact), codec, layout, owners)
    assert measured == (encoder.errors or dict.fromkeys(layout.columns, (0, 0)))
    assert list(measured) == [slot.name for slot in layout.slots]
    for k in range(K):
        for slot, error in zip(layout.slots, layout.views(errors[k]), strict=True):
            if slot.numel:
                assert measured[slot.name].absolute >= float(error.max()) * (1 - 2**-23)
    if codec == "fp32":
        assert all(error == (0, 0) for error in measured.values())


@settings(max_examples=200, deadline=None)
@given(
    exponents=st.lists(st.floats(-30, 30), min_size=1, max_size=8),
    codec=st.sampled_from(INTEGERS),
    seed=st.integers(0, 9),
)
def test_a_group_of_any_magnitude_errs_by_no_more_than_half_its_step(
    exponents: list[float], codec: Codec, seed: int
) -> None:
    exact = groups_of(exponents, seed)
    vectors = encode_piece(exact, codec)
    errors = (vectors.decode().double() - exact.double()).abs()
    assert (errors <= bound(exact, codec)).all()
    largest = exact.view(-1, GROUP).abs().amax(-1).double()
    relative = errors.view(-1, GROUP).amax(-1) / largest
    assert (relative <= ERROR_OF_CODEC[codec] + 2.0**-22).all()


@pytest.mark.parametrize("codec", INTEGERS)
def test_groups_whose_scale_would_be_subnormal_obey_the_bound(codec: Codec) -> None:
    exact = groups_of([-45.0, -44.0, -42.0, -40.0, -39.0, -38.0, -37.0, -36.0, -35.0], 0)
    exact[0, :GROUP] = 0
    exact[0, 5] = 2.0**-149  # the smallest number there is
    vectors = encode_piece(exact, codec)
    assert vectors.scales is not None
    assert ((vectors.scales == 0) | (vectors.scales >= SMALLEST)).all()
    errors = (vectors.decode().double() - exact.double()).abs()
    assert (errors <= bound(exact, codec)).all()
    assert (errors.view(-1, GROUP).amax(-1) <= vectors.scales[0].double() / 2 * (1 + 2e-5)).all()


@pytest.mark.parametrize("codec", INTEGERS)
def test_codes_are_quotients_rounded_half_to_even(codec: Codec) -> None:
    limit = LARGEST_CODE[codec]
    exact = torch.zeros(1, 3 * GROUP)
    halves = torch.tensor([limit, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, limit - 0.5, -limit, 1.25])
    exact[0, :10] = halves * 2.0**-20  # so the scale is a power of two, and the halves are exact
    exact[0, 2 * GROUP :] = 7.0
    vectors = encode_piece(exact, codec)
    assert vectors.scales is not None
    assert vectors.scales.tolist() == [[2.0**-20, 0, float(torch.tensor(7.0) / limit)]]
    codes = vectors.codes[0].tolist()
    if codec == "int4":
        codes = [half - 16 * (half > 7) for byte in codes for half in (byte & 15, byte >> 4)]
    assert codes[:10] == [limit, 0, 2, 2, 0, -2, -2, limit - 1, -limit, 1]
    assert codes[10 : 2 * GROUP] == [0] * (2 * GROUP - 10)
    assert codes[2 * GROUP :] == [limit] * GROUP
    assert min(codes) >= -limit


@pytest.mark.parametrize("codec", CODECS)
def test_bits_do_not_depend_on_pieces_or_threads(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of({"a": (900, 70), "b": (3,), "none": (0, 4), "c": (70, 900)})
    exact = torch.randn(2, layout.elements, generator=torch.Generator().manual_seed(0))
    wanted, encoder = encode(TaskVectors(exact), codec, layout, ["x", "y"])
    threads = torch.get_num_threads()
    monkeypatch.setattr("mdft_fast.arena.codecs.PIECE", 3 * GROUP)
    torch.set_num_threads(threads % 2 + 1)
    try:
        got, again = encode(TaskVectors(exact), codec, layout, ["x", "y"])
    finally:
        torch.set_num_threads(threads)
    assert again.digests == encoder.digests
    assert again.errors == encoder.errors
    assert torch.equal(got.codes, wanted.codes)
    assert got.scales is None or torch.equal(got.scales, wanted.scales)  # type: ignore[arg-type]


def test_errors_are_the_worst_of_the_tasks_over_the_tensors_largest() -> None:
    layout = Layout.of({"a": (2 * TILE,), "b": (1,)})
    exact = torch.zeros(2, layout.elements)
    exact[0, 0], exact[0, GROUP] = 127.0, 0.25  # step 1 in one group, exact in the next
    exact[0, 1] = 0.5
    exact[1, 0], exact[1, 1] = 12.7, 0.04
    exact[1, 2 * TILE] = 3.0
    errors = codec_errors(TaskVectors(exact), "int8", layout, ["x", "y"])
    assert errors["a"].absolute == 0.5
    assert errors["a"].relative == max(0.5 / 127, float(exact[1, 1] / exact[1, 0]))
    assert errors["b"] == (0, 0)


@pytest.mark.parametrize("target", CODECS)
@pytest.mark.parametrize("source", CODECS)
def test_from_every_codec_to_every_other(
    source: Codec,
    target: Codec,
    parts: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    exact = parts.build()
    pool = exact.encode(source)
    again = pool.encode(target)
    stored = pool.vectors.decode()
    errors = (again.vectors.decode().double() - stored.double()).abs()
    assert (errors <= (0 if source == target else bound(stored, target))).all()
    assert again.checksum == pool.encode(target).checksum  # equal inputs, equal bits
    rounded = source != "fp32" and source != target
    assert [n for n in again.notes if f"codec {source!r}" in n] == list(again.notes)
    assert len(again.notes) == rounded
    if source == target:
        assert again is pool
    # What the pool says of its own errors holds against the checkpoints, over both roundings.
    if again.errors:
        off = (again.vectors.decode() - exact.vectors.codes).abs()
        for k in range(again.K):
            for name, tensor in zip(again.column_names, again.layout.views(off[k]), strict=True):
                assert float(tensor.max()) <= again.errors[name].absolute * (1 + 1e-6)
    # From disk to disk, a task vector at a time, it is the same.
    pool.save(tmp_path / "one")
    Pool.open(tmp_path / "one").save(tmp_path / "other", target)
    other = Pool.open(tmp_path / "other", verify=True)
    assert (other.checksum, other.errors) == (again.checksum, again.errors)
    assert (other.notes, other.describe()) == (again.notes, again.describe())
    again.save(tmp_path / "third")
    for name in ("tau.safetensors", "pool.json"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "third" / name).read_bytes()


def test_errors_of_two_roundings_add_up() -> None:
    first, second = {"a": CodecError(1.0, 0.5)}, {"a": CodecError(2.0, 0.1)}
    assert add_errors(first, second) == {"a": (3.0, 0.5 + 0.1 * 1.5)}
    assert add_errors({}, second) == second
    assert add_errors(first, {}) == first


@pytest.mark.parametrize("K", [0, 2])
def test_decode_of_a_range_and_of_nothing(K: int) -> None:
    row = torch.randn(K, 4 * GROUP, generator=torch.Generator().manual_seed(0))
    codes = (row * 7).round().clamp(-127, 127).to(torch.int8)
    vectors = TaskVectors(codes, "int8", torch.full((K, 4), 0.5))
    assert torch.equal(vectors.decode(), codes * 0.5)
    assert torch.equal(vectors.decode(GROUP, 3 * GROUP), codes[:, GROUP : 3 * GROUP] * 0.5)
    assert vectors.decode(GROUP, GROUP).shape == (K, 0)
