# SPDX-License-Identifier: Apache-2.0
"""ViT-Tiny and eight models fine-tuned from it: the method's oracle 1, and what codecs cost."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast.arena import CODECS, ERROR_OF_CODEC, LARGEST_CODE, rows_of
from mdft_fast.checkpoints import open_state
from mdft_fast.pool import Pool


def test_base_plus_task_vector_is_every_model_bit_for_bit(real: Any, real_pool: Pool) -> None:
    assert real_pool.K == 8
    assert len(real_pool.column_names) == len(open_state(real.base).tensors) == 150
    assert not real_pool.left_out
    for k, name in enumerate(real_pool.names):
        model = open_state(real.models[name]).tensors
        merged = real_pool.layout.views(real_pool.base + real_pool.vectors.codes[k])
        for column, tensor in zip(real_pool.column_names, merged, strict=True):
            assert torch.equal(tensor, model[column].float()), (name, column)
            assert torch.equal(tensor.half(), model[column])
        assert real_pool.tasks[k].round_off == 0


@pytest.mark.parametrize("codec", CODECS)
def test_comes_back_bit_for_bit(codec: str, real: Any, real_pool: Pool, tmp_path: Path) -> None:
    pool = real_pool.encode(codec)
    pool.save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool", verify=True)
    assert torch.equal(opened.vectors.codes, pool.vectors.codes)
    assert torch.equal(opened.vectors.decode(), pool.vectors.decode())
    assert torch.equal(opened.base, pool.base)
    assert opened.checksum == pool.checksum
    streamed = Pool.pack(
        tmp_path / "s", real.base, real.models, real.tasks, **real.options, codec=codec
    )
    assert streamed.checksum == pool.checksum


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_err_within_their_bound(codec: str, real_pool: Pool) -> None:
    pool = real_pool.encode(codec)
    errors = real_pool.codec_error(codec)
    assert list(errors) == list(real_pool.column_names)
    assert pool.errors == (errors if codec != "fp32" else {})
    for name, error in errors.items():
        assert error.relative <= ERROR_OF_CODEC[codec] + 2.0**-22 * (codec in LARGEST_CODE), name
    assert any(error.absolute > 0 for error in errors.values()) == (codec != "fp32")


@pytest.mark.parametrize("codec", CODECS)
def test_individual_models_are_within_the_codecs_error(
    codec: str, real: Any, real_pool: Pool
) -> None:
    pool = real_pool.encode(codec)
    for k, name in enumerate(pool.names):
        model = open_state(real.models[name]).tensors
        row = next(islice(rows_of(pool.vectors), k, None)).decode()[0]
        for column, tensor in zip(
            pool.column_names, pool.layout.views(pool.base + row), strict=True
        ):
            theta = model[column].float()
            allowed = pool.errors[column].absolute if pool.errors else 0.0
            # base + τ is exact before the codec; after it, one rounding of the sum.
            assert ((tensor - theta).abs() <= allowed + 2.0**-23 * theta.abs()).all(), column
