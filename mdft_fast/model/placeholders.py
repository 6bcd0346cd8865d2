# SPDX-License-Identifier: Apache-2.0
"""A private copy of the caller's module, without the weights that the pool replaces."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.errors import MdftError
from mdft_fast.pool import Pool


def empty_copy(backbone: nn.Module, pool: Pool) -> Any:
    """Copies a module without the weights that the pool replaces; the rest is the pool's base.

    Raises:
        MdftError: if backbone and pool do not fit; it names the tensor.
    """
    merged = check_shapes(backbone, pool)
    for name, module in backbone.named_modules():
        for flag in ("grad_checkpointing", "gradient_checkpointing"):  # timm, open_clip; others
            if getattr(module, flag, False):
                raise MdftError(
                    f"backbone: {name or 'the module'} must not checkpoint by itself ({flag}), as "
                    f"its weights are there during forward alone; use checkpointing=True"
                )
    # Found in its memo, a weight is taken by deepcopy for copied already: none is ever made.
    empty = nn.Parameter(torch.empty(0, dtype=torch.float32, device="cpu"), requires_grad=False)
    clone = copy.deepcopy(backbone, {id(parameter): empty for parameter in merged})
    for module in clone.modules():
        for name, parameter in module._parameters.items():
            if parameter is empty:
                module._parameters[name] = None
    clone.eval().requires_grad_(False)
    with torch.no_grad():
        for name, value in (*clone.named_parameters(), *clone.named_buffers()):
            if name in pool.buffers:
                value.copy_(pool.buffers[name])
    return clone


def check_shapes(backbone: nn.Module, pool: Pool) -> list[nn.Parameter]:
    """Returns a backbone's merged parameters, once they and its buffers are as in the pool."""
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    shapes = {slot.name: slot.shape for slot in pool.layout.slots}
    for name, shape in shapes.items():
        if name not in parameters or tuple(parameters[name].shape) != shape:
            got = list(parameters[name].shape) if name in parameters else "no such parameter"
            raise MdftError(f"backbone: {name} must be {list(shape)} as in the pool, got {got}")
    _check_known(backbone, pool, shapes)
    return [parameters[name] for name in shapes]


def _check_known(backbone: nn.Module, pool: Pool, merged: dict[str, tuple[int, ...]]) -> None:
    """Refuses a tensor of the backbone that the pool does not have, or has in another shape."""
    for name, value in backbone.state_dict().items():
        if name in merged or name in pool.ties:
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue  # counters and the like: a checkpoint may lack them
        held = pool.buffers.get(name)
        if held is None or held.shape != value.shape:
            wanted = "absent, as in the pool" if held is None else f"{list(held.shape)}"
            raise MdftError(f"backbone: {name} must be {wanted}, got {list(value.shape)}")


def exact_copies(module: nn.Module) -> dict[str, Tensor]:
    """Returns copies of the floating tensors that a private copy holds by itself."""
    named_tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: t.detach().clone() for name, t in named_tensors if t.is_floating_point()}


@torch.no_grad()
def restore(module: nn.Module, exact: Mapping[str, Tensor]) -> None:
    """Puts tensors back as :func:`exact_copies` found them, but for the device."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if name in exact:
            value.copy_(exact[name])
