# SPDX-License-Identifier: Apache-2.0
"""What a pool makes of its codec: models, refusals, words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast import reference
from mdft_fast.arena import CODECS, Codec
from mdft_fast.errors import MdftError
from tests.pool.conftest import tiny_parts

INTEGERS: tuple[Codec, ...] = ("int8", "int4")


@pytest.mark.parametrize("codec", INTEGERS)
def test_scales_tell_vectors_of_equal_codes_apart(codec: Codec) -> None:
    parts = tiny_parts(K=2, dtype=torch.float32)
    parts.options["codec"] = codec
    for name, tensor in parts.base.items():
        if tensor.is_floating_point() and name not in ("frozen", "shift"):
            tensor.zero_()
            parts.models[1][name] = 2 * parts.models[0][name]
    pool = parts.build()
    assert torch.equal(pool.vectors.codes[0], pool.vectors.codes[1])
    for name in (*pool.column_names, "again.weight"):
        parts.models[1][name] = 2 * parts.models[1][name]
    other = parts.build()
    assert torch.equal(other.vectors.codes, pool.vectors.codes)
    assert other.checksum != pool.checksum


def test_models_that_a_codec_makes_equal_are_refused_in_its_name() -> None:
    parts = tiny_parts(dtype=torch.float32)
    parts.models[2] = {n: t.clone() for n, t in parts.models[0].items()}
    parts.models[2]["wide.weight"].view(-1)[7] *= 1 + 2.0**-20
    assert parts.build().K == 3
    parts.options["codec"] = "int4"
    with pytest.raises(MdftError, match=r"'task2' is identical to .* in codec 'int4'; wanted"):
        parts.build()


@pytest.mark.parametrize("codec", CODECS)
def test_individual_models_are_within_the_codecs_error(codec: Codec, parts: Any) -> None:
    pool = parts.build().encode(codec)
    plan = pool.layout.plan(torch.device("cpu"))
    for k, model in enumerate(parts.models):
        coefficients = torch.zeros(pool.K, len(pool.column_names))
        coefficients[k] = 1
        merged = reference.merge(pool.base, pool.vectors.decode(), coefficients, plan)
        for name, tensor in zip(pool.column_names, pool.layout.views(merged), strict=True):
            off = (tensor - model[name].float()).abs()
            allowed = pool.errors[name].absolute if pool.errors else 0.0
            assert (off <= allowed + 2.0**-23 * model[name].float().abs() + 1e-12).all(), name


@pytest.mark.parametrize("codec", ["bf16", *INTEGERS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_element_that_is_not_finite_is_refused_by_name(
    bad: float, codec: Codec, parts: Any, tmp_path: Path
) -> None:
    pool = parts.build()
    where = pool.column_names.index("wide.weight")
    pool.layout.views(pool.vectors.codes[1])[where][1, 2] = bad
    message = rf"task 'task1': tensor 'wide.weight' .*must be finite, got {bad:g}"
    with pytest.raises(MdftError, match=message):
        pool.encode(codec)
    with pytest.raises(MdftError, match=message):
        pool.save(tmp_path / "pool", codec)
    with pytest.raises(MdftError, match=message):
        pool.codec_error(codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", CODECS)
def test_describes_size_and_bound(codec: Codec, parts: Any) -> None:
    parts.options["codec"] = codec
    pool = parts.build()
    text = pool.describe()
    assert f"{pool.vectors.bytes / 1e6:,.1f} MB of task vectors" in text
    words = {
        "fp32": "relative error <= 0",
        "bf16": "relative error <= 0.0039",
        "fp16": "relative error <= 0.00049",
        "int8": "error <= 0.0039 of the largest element of each group of 128",
        "int4": "error <= 0.071 of the largest element of each group of 128",
    }
    assert words[codec] in text
    assert ("tasks, before their vectors were rounded\n" in text) == (codec != "fp32")


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
