# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers that give one tensor, built of a config: no hub, no files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.errors import MdftError, nearest, need

# Model -> its config's class, and the field of its output that is the feature.
FEATURES = {
    "CLIPVisionModel": ("CLIPVisionConfig", "pooler_output"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", "image_embeds"),
    "Dinov2Model": ("Dinov2Config", "pooler_output"),
    "ViTModel": ("ViTConfig", "pooler_output"),
}
_ATTENTION = ("eager", "sdpa")  # others may come from the hub
_POOLING = "add_pooling_layer"  # ViTModel's own argument, beside its config


def build(library: Any, name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Builds an encoder ``[B, 3, H, W] -> [B, D]``.

    ViTModel without its pooling layer gives the last layer's CLS token after the final norm.
    ``checkpoint_names`` of the result has, for each name of its state dict, the one that
    ``save_pretrained`` writes, where these differ.
    """
    if name not in FEATURES:
        raise MdftError(
            f"backbone: 'name' of a transformers model must be one of {sorted(FEATURES)}, got "
            f"{name!r}{nearest(name, FEATURES)}"
        )
    config_name, field = FEATURES[name]
    config_class = getattr(library, config_name)
    config_kwargs = dict(kwargs)
    pooling = config_kwargs.pop(_POOLING, True)
    module_kwargs = {} if pooling is True else {_POOLING: False}
    if type(pooling) is not bool or (module_kwargs and name != "ViTModel"):
        raise MdftError(
            f"backbone: 'kwargs.{_POOLING}' must be true or false, and is ViTModel's, got "
            f"{pooling!r} of {name}"
        )
    attention = config_kwargs.pop("attn_implementation", "sdpa")
    if attention not in _ATTENTION:
        raise MdftError(
            f"backbone: 'kwargs.attn_implementation' must be one of {list(_ATTENTION)}, got "
            f"{attention!r}"
        )
    _check_arguments(config_class, config_kwargs)
    config = config_class(**config_kwargs, attn_implementation=attention)
    module: nn.Module = _encoder(library, name, None if module_kwargs else field)(
        config, **module_kwargs
    )
    module.__dict__["checkpoint_names"] = _file_names(module)
    return module


def _check_arguments(config_class: Any, config_kwargs: Mapping[str, Any]) -> None:
    known = [
        name
        for name, parameter in inspect.signature(config_class.__init__).parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY and not name.startswith("_")
    ]
    for key in config_kwargs:
        if key not in known:
            raise MdftError(
                f"backbone: 'kwargs.{key}' must be one of {config_class.__name__}'s {known}"
                f"{nearest(key, known)}"
            )


@functools.cache
def _encoder(library: Any, name: str, field: str | None) -> Any:
    """Returns the library's class with a forward that gives the feature; its names are kept."""
    base = getattr(library, name)

    def forward(self: Any, pixel_values: Tensor) -> Tensor:
        output = base.forward(self, pixel_values=pixel_values, return_dict=True)
        feature: Tensor = output.last_hidden_state[:, 0] if field is None else output[field]
        return feature

    # The library takes a class of another module for a stranger's, and its names for unchanged.
    return type(name, (base,), {"forward": forward, "__module__": base.__module__})


def _file_names(module: nn.Module) -> dict[str, str]:
    """Returns the names that ``save_pretrained`` gives, where the library renames at all.

    Its own conversion is asked, with a number in place of each tensor.
    """
    try:
        revert = need("transformers.core_model_loading", "transformers").revert_weight_conversion
    except MdftError:  # before version 5 no name was changed
        return {}
    names = list(module.state_dict())
    with torch.device("cpu"):
        numbered = {name: torch.tensor(float(i), device="cpu") for i, name in enumerate(names)}
        try:
            written = revert(module, numbered)
            files = {names[int(number)]: name for name, number in written.items()}
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise MdftError(
                f"backbone: transformers changes more than names in {type(module).__name__}'s "
                f"files: {error}"
            ) from None
    return {name: file for name, file in files.items() if name != file}
