# SPDX-License-Identifier: Apache-2.0
"""The comparison on docs/operators.md runs, and both sides of it give the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_torch_and_ours_agree() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Tanh(), torch.nn.Linear(40, 8))
    base = {name: x.detach() for name, x in encoder.named_parameters()}
    names: dict[str, Any] = {
        "encoder": encoder,
        "base": base,
        "finetuned": [
            {name: x + 0.1 * torch.randn_like(x) for name, x in base.items()} for _ in range(3)
        ],
        "images": [torch.randn(n, 6) for n in (5, 9, 4)],
        "heads": [torch.nn.Linear(8, c) for c in (3, 10, 5)],
        "teacher_logits": [6 * torch.randn(n, c) for n, c in ((5, 3), (9, 10), (4, 5))],
    }
    for block in blocks[:3]:
        exec(block, names)
    torch.testing.assert_close(names["fused"], names["loss"])
    torch.testing.assert_close(names["coefficients"].grad, names["lam"].grad)
    assert names["lam"].grad.abs().sum() > 0
    assert all(torch.equal(names["again"][name], x) for name, x in names["merged"].items())
