# SPDX-License-Identifier: Apache-2.0
"""Random numbers for methods that draw: they depend on what they are for, on no order of calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdft_fast.methods.method import Method, Site
from mdft_fast.model import generator_of


def chance(
    method: Method, seed: int, site: Site, vector: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Returns draws, even in [0, 1), float32.

    They are made on the host, so equal arguments give equal bits on every device; no global
    generator is read or moved.

    Args:
        method: who draws: methods of equal seeds draw independently.
        seed: the method's.
        site: the tensor, whose name counts.
        vector: the number of the vector, from 0.
        shape: of the draws.
        device: where they go.
    """
    generator = generator_of(f"{method.name}/{seed}/{site.slot.name}/{vector}")
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu").to(
        device
    )
