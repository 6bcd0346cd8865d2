# SPDX-License-Identifier: Apache-2.0
"""BitDelta: matrices of blocks have one magnitude, all else stays as it is."""

from __future__ import annotations

import torch

from mdft_fast.methods import Bitdelta, apply
from tests.methods.made_pools import MATRICES, backbone, draw, make_pool, tensors


def test_matrices_alone_are_changed() -> None:
    deltas = draw(3)
    made = tensors(apply(make_pool(deltas), [Bitdelta()], backbone=backbone()))
    for name, tensor in deltas.items():
        if name not in MATRICES:
            assert torch.equal(made[name], tensor), name
            continue
        for vector, row in zip(made[name], tensor.double(), strict=True):
            wanted = row.sign() * row.abs().sum() / row.numel()
            assert torch.allclose(vector.double(), wanted, rtol=2.0**-23, atol=0), name
