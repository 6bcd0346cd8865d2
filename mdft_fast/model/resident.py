# SPDX-License-Identifier: Apache-2.0
"""Runs a backbone with the whole arena merged: once a step, and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.arena import Layout, TaskVectors
from mdft_fast.checkpoints import Batch, arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.model.partition import Owner, Piece, installed, replaced_forward
from mdft_fast.model.recompute import recomputed
from mdft_fast.ops import merge_tensors


class Resident:
    """Merges all weights at once.

    On the CPU they are merged where λ has changed since the last call, and used again where not;
    backward through a graph made before λ changed and was merged anew raises: its weights are
    gone. On CUDA every call merges into a fresh buffer: to compare λ would wait for the device.

    Args:
        backbone: a private module with empty slots for the merged weights.
        owners: the places that hold each of the layout's tensors.
        blocks: whose activations are computed again in backward; empty: none.
        base: ``[N]`` pre-trained arena.
        vectors: the task vectors.
        layout: their map.
        dtype: of the merged weights.

    Attributes:
        elements: number of merged weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        owners: Sequence[tuple[Owner, ...]],
        blocks: Sequence[Piece],
        base: Tensor,
        vectors: TaskVectors,
        layout: Layout,
        *,
        dtype: torch.dtype,
    ) -> None:
        self._backbone, self._owners, self._blocks = backbone, owners, blocks
        self._base, self._vectors, self._layout, self._dtype = base, vectors, layout, dtype
        self.elements = layout.elements
        self._arena: Tensor | None = None
        self._merged: Tensor | None = None  # the λ that the arena holds

    def encode(self, batch: Batch, coefficients: Tensor) -> Tensor:
        """Runs the backbone on a batch with the weights that λ gives."""
        weights = self.weights(coefficients)
        with contextlib.ExitStack() as stack:
            for piece in self._blocks if torch.is_grad_enabled() else ():
                block = self._backbone.get_submodule(piece.name)
                run = _block_runner(piece, weights, block.forward)
                stack.enter_context(replaced_forward(block, run))
            stack.enter_context(installed(self._owners, weights))
            args, kwargs = arguments_of(batch)
            features: Tensor = self._backbone(*args, **kwargs)
        return features

    def weights(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        """Returns the merged tensors in the layout's order, views of one buffer."""
        arguments = self._base, self._vectors, coefficients, self._layout
        if self._base.device.type != "cpu":
            return merge_tensors(*arguments, out_dtype=self._dtype)
        if self._arena is None:
            with torch.inference_mode(False):  # else no later training step could save it
                self._arena = torch.empty_like(self._base, dtype=self._dtype)
        # Values, not versions: not every optimizer bumps a version, and addresses come again.
        current = self._merged is not None and torch.equal(self._merged, coefficients)
        if not current:
            self._merged = None  # until the merge is done, whatever interrupts it
        tensors = merge_tensors(*arguments, out=self._arena, current=current)
        self._merged = coefficients.detach().clone()
        return tensors


def _block_runner(
    piece: Piece, weights: Sequence[Tensor], forward: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a block's forward that keeps no activations; they are computed again in backward."""
    piece_weights = [weights[number] for number in piece.numbers]
    versions = [weight._version for weight in piece_weights]

    def run_once(*args: Any, **kwargs: Any) -> Any:
        if [weight._version for weight in piece_weights] != versions:  # checkpoint would not notice
            raise MdftError(
                "meta-model: λ must stay as it was until backward is done, got another merge in "
                "between"
            )
        with installed(piece.owners, piece_weights):  # in backward nothing is
            return forward(*args, **kwargs)

    return lambda *args, **kwargs: recomputed(run_once, args, kwargs)
