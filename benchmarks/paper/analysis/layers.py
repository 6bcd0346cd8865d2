# SPDX-License-Identifier: Apache-2.0
"""What each block of a plain encoder gives, whatever the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.errors import MdftError

OUTPUT = "output"  # the encoder's own


class LayerReader:
    """Reads the outputs of blocks and of the whole encoder, each as ``[n, F]``.

    Libraries differ in which dimension of a block's output counts the images (open_clip has had
    both), so two small batches of different size are asked once, and the one that changes is it.

    Args:
        module: an encoder ``[n, 3, H, W] -> [n, D]`` in eval mode; not changed.
        blocks: names of its submodules.
        example: float ``[3 or more, 3, H, W]``, images to ask with.

    Attributes:
        names: of the layers: the blocks, and "output".
    """

    def __init__(self, module: nn.Module, blocks: Sequence[str], example: Tensor) -> None:
        if module.training:
            raise MdftError("layers: the module must be in eval mode, got training mode")
        if len(example) < 3:
            raise MdftError(f"layers: example must hold 3 images or more, got {len(example)}")
        self._module, self._blocks = module, tuple(blocks)
        self.names = (*self._blocks, OUTPUT)
        two, three = self._outputs(example[:2]), self._outputs(example[:3])
        pairs = zip(self.names, two, three, strict=True)
        self._dimensions = [_dimension(name, a.shape, b.shape) for name, a, b in pairs]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns each layer's features ``[n, F]`` of images ``[n, 3, H, W]``: all tokens."""
        outputs = zip(self._outputs(images), self._dimensions, strict=True)
        return [output.movedim(dimension, 0).flatten(1) for output, dimension in outputs]

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> list[Tensor]:
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                outputs[name] = output[0] if isinstance(output, (tuple, list)) else output

            return hook

        hooks = [
            self._module.get_submodule(name).register_forward_hook(keep(name))
            for name in self._blocks
        ]
        try:
            outputs[OUTPUT] = self._module(images)
        finally:
            for hook in hooks:
                hook.remove()
        if silent := [name for name in self.names if not isinstance(outputs.get(name), Tensor)]:
            raise MdftError(f"layers: every block must run and give a tensor, got none of {silent}")
        return [outputs[name] for name in self.names]


def _dimension(name: str, two: torch.Size, three: torch.Size) -> int:
    """Returns the dimension that counts images: 2 in one shape, 3 in the other."""
    changed = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if len(changed) != 1 or (two[changed[0]], three[changed[0]]) != (2, 3):
        raise MdftError(
            f"layers: one dimension of {name}'s output must count the images, got {list(two)} for "
            f"2 and {list(three)} for 3"
        )
    return changed[0]
