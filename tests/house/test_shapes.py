# SPDX-License-Identifier: Apache-2.0
"""9. Shapes of public functions are executed in the test run: see tests/shapes.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdft_fast import arena, ops


def scaled(x: Any, by: Any, swap: bool) -> Any:
    return (x * by[:, None]).T if swap else x * by[:, None]


def test_a_wrong_shape_is_seen() -> None:
    jaxtyping = pytest.importorskip("jaxtyping")
    pytest.importorskip("beartype")
    from tests.shapes import checked

    matrix, vector = (jaxtyping.Float[torch.Tensor, shape] for shape in ("K N", "K"))
    scaled.__annotations__ = {"x": matrix, "by": vector, "swap": bool, "return": matrix}
    call = checked(scaled)
    assert call(torch.ones(2, 3), torch.ones(2), False).shape == (2, 3)
    with pytest.raises(AssertionError, match="scaled: return must be"):
        call(torch.ones(2, 3), torch.ones(2), True)
    with pytest.raises(AssertionError, match="scaled: by must be"):
        call(torch.ones(1, 3), torch.ones(2), False)


@pytest.mark.parametrize(
    "function", [ops.merge, ops.merge_dots, ops.debiased_entropy_loss, arena.encode]
)
def test_public_functions_are_checked(function: object) -> None:
    pytest.importorskip("beartype")
    assert hasattr(function, "__wrapped__")
