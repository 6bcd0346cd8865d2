# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdft_fast.layout import TILE, Layout
from mdft_fast.pool.codecs import codec_errors, encode
from mdft_fast.task_vectors import CODECS, DTYPE_OF_CODEC, Codec, TaskVectors

SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(shapes=SHAPES, K=st.integers(1, 3), codec=st.sampled_from(CODECS), scale=st.integers(-9, 3))
def test_no_element_errs_by_more_than_half_a_step(
    shapes: list[tuple[int, ...]], K: int, codec: Codec, scale: int
) -> None:
    layout = Layout.of({f"t{i}": shape for i, shape in enumerate(shapes)})
    assert layout.elements % TILE == 0
    exact = (
        torch.randn(K, layout.elements, generator=torch.Generator().manual_seed(K)) * 10.0**scale
    )
    codes = encode(TaskVectors(exact), codec, layout, [str(k) for k in range(K)])
    errors = (codes.float() - exact).abs()
    info = torch.finfo(DTYPE_OF_CODEC[codec])
    # Half a unit in the last place of a normal number, half the smallest step below them.
    bound = (exact.abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)
    assert (errors <= (0 if codec == "fp32" else bound)).all()

    measured = codec_errors(TaskVectors(exact), codec, layout)
    assert list(measured) == [slot.name for slot in layout.slots]
    for k in range(K):
        for slot, error, tensor in zip(
            layout.slots, layout.views(errors[k]), layout.views(exact[k]), strict=True
        ):
            if slot.numel:
                assert measured[slot.name].absolute >= float(error.max())
                relative = float(error.max()) / float(tensor.abs().max())
                assert measured[slot.name].relative >= relative
    if codec == "fp32":
        assert all(error == (0, 0) for error in measured.values())


def test_a_zero_tensor_costs_nothing(parts: Any) -> None:
    for model in parts.models:
        model["gain"] = parts.base["gain"].clone()
    assert parts.build().codec_error("bf16")["gain"] == (0, 0)


def test_encoding_leaves_the_pool_as_it_was(parts: Any) -> None:
    pool = parts.build()
    before = pool.vectors.codes.clone()
    packed = pool.encode("bf16")
    assert packed.codec == "bf16"
    assert packed.vectors.codes.dtype == torch.bfloat16
    assert torch.equal(packed.vectors.codes, before.bfloat16())
    assert torch.equal(pool.vectors.codes, before)
    assert packed.encode("bf16") is packed
    parts.options["codec"] = "bf16"
    assert parts.build().checksum == packed.checksum


def test_an_unknown_codec_names_the_nearest(parts: Any) -> None:
    with pytest.raises(Exception, match=r"codec: must be one of .*got 'fp61'; did you mean"):
        parts.build().codec_error("fp61")
