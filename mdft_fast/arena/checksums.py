# SPDX-License-Identifier: Apache-2.0
"""The bytes of tensors, and what names them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def raw(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor; a view where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def digest(*tensors: Tensor) -> str:
    """Returns the sha256 of the bytes of one tensor, or of several one after the other."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(raw(tensor))
    return total.hexdigest()
