# SPDX-License-Identifier: Apache-2.0
"""λ as a plain parameter, or behind ``torch.nn.utils.parametrize``: a clamp, say."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mdft_fast.errors import MdftError

NAME = "coefficients"


def is_plain(module: nn.Module) -> bool:
    """Returns whether λ is a parameter itself."""
    return NAME in module._parameters


def originals(module: nn.Module) -> list[Tensor]:
    """Returns the tensors that λ is made of.

    Raises:
        MdftError: if something else than a parametrization of torch makes it: what is written
            would be overwritten.
    """
    if is_plain(module):
        return [module.get_parameter(NAME)]
    if not parametrize.is_parametrized(module, NAME):
        raise MdftError(
            f"meta-model: {NAME} must be a parameter, or one under torch.nn.utils.parametrize, got "
            f"{type(getattr(module, NAME)).__name__}"
        )
    made_of = module.get_submodule(f"parametrizations.{NAME}")
    held = chain(made_of.named_parameters(recurse=False), made_of.named_buffers(recurse=False))
    return [tensor for _, tensor in held]


@torch.no_grad()
def write(module: nn.Module, value: Tensor) -> None:
    """Sets λ, through the inverse of its parametrization where there is one.

    Args:
        module: the meta-model.
        value: ``[K, L]``.

    Raises:
        MdftError: if the parametrization has no inverse, or cannot give the value; λ stays.
    """
    held = originals(module)
    if is_plain(module):
        held[0].copy_(value)
        return
    before = [tensor.clone() for tensor in held]
    value = value.to(held[0].device)
    try:
        setattr(module, NAME, value)
        got = getattr(module, NAME)
        # There and back again, in float32: torch.testing's own bounds.
        fits = torch.allclose(got, value, rtol=1.3e-6, atol=1e-5)
        why = "" if fits else f"values up to {float((got - value).abs().max()):.3g} away"
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        restore(module, before)
        raise MdftError(f"{NAME}: their parametrization must give what is set, got {why}")


@torch.no_grad()
def restore(module: nn.Module, before: list[Tensor]) -> None:
    """Puts back what :func:`originals` held."""
    for tensor, was in zip(originals(module), before, strict=True):
        tensor.copy_(was)
