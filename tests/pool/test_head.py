# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.pool import Head


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)])
def test_is_its_definition(normalize: bool, bias: Tensor | None) -> None:
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64)
    head = Head(weight, bias, normalize, scale=20.0)
    features = x / x.norm(dim=-1, keepdim=True) if normalize else x
    wanted = 20 * features @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(head(x), wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(head, (x,))


def test_answers_in_the_dtype_of_the_features() -> None:
    head = Head(torch.ones(2, 3).half(), torch.ones(2).half())
    assert head(torch.ones(1, 3)).dtype == torch.float32
    assert head.to(dtype=torch.float32).weight.dtype == torch.float32
    assert head.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"wieght": torch.ones(2, 2)}, r"got 'wieght'; did you mean 'weight'\?"),
        ({"bias": torch.ones(2)}, r"tensor 'weight' \[C, D\] is missing, got \['bias'\]"),
        ({"weight": torch.ones(2)}, r"weight must be floating \[C, D\], got \[2\]"),
        ({"weight": torch.ones(2, 2).int()}, r"weight must be floating .*torch.int32"),
        (
            {"weight": torch.ones(2, 2), "bias": torch.ones(3)},
            r"bias must be floating \[2\], got \[3\]",
        ),
    ],
)
def test_a_wrong_file_is_named(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(MdftError, match=r"head.safetensors: .*" + message):
        Head.from_file(tmp_path / "head.safetensors", normalize=True)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(MdftError, match=r"features must be \[..., 3\], got \[1, 4\]"):
        Head(torch.ones(2, 3))(torch.ones(1, 4))
