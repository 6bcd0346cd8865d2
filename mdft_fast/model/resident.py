# SPDX-License-Identifier: Apache-2.0
"""Runs a backbone with the whole arena merged: once a step, and kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdft_fast.arena import TILE, Layout, TaskVectors
from mdft_fast.checkpoints import Batch, arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.model.feeds import versions_of
from mdft_fast.model.partition import Owner, Piece, installed, replaced_forward
from mdft_fast.model.recompute import recomputed
from mdft_fast.model.turns import Turns
from mdft_fast.ops import merge_tensors


class Resident:
    """Merges all weights at once.

    On the CPU they are merged where λ, base, vectors or they themselves have changed since the last
    call, and used again where not; backward through a graph made before they were merged anew
    raises: its weights are gone. On CUDA every call merges into a fresh buffer: to compare would
    wait for the device.

    Args:
        backbone: a private module with empty slots for the merged weights.
        owners: the places that hold each of the layout's tensors.
        blocks: whose activations are computed again in backward; empty: none.
        base: ``[N]`` pre-trained arena.
        vectors: the task vectors.
        layout: their map.
        dtype: of the merged weights.
        turns: whose turn it is: backward, too, puts weights into the backbone.

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
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._backbone, self._owners, self._blocks = backbone, owners, blocks
        self._base, self._vectors, self._layout, self._dtype = base, vectors, layout, dtype
        self.elements = layout.elements
        self._arena: Tensor | None = None
        self._merged: _Merged | None = None  # what the arena holds

    def encode(self, batch: Batch, coefficients: Tensor) -> Tensor:
        """Runs the backbone on a batch with the weights that λ gives."""
        weights = self.weights(coefficients)
        with contextlib.ExitStack() as stack:
            for piece in self._blocks if torch.is_grad_enabled() else ():
                block = self._backbone.get_submodule(piece.name)
                run = _block_runner(piece, weights, block.forward, self._turns)
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
        inputs = self._base, self._vectors.codes, self._vectors.scales, self._arena
        current = (
            self._merged is not None
            and torch.equal(self._merged.coefficients, coefficients)
            and self._merged.versions == versions_of(*inputs)
            and torch.equal(self._merged.print, _fingerprint(self._arena))
        )
        if current:
            return merge_tensors(*arguments, out=self._arena, current=True)
        self._merged = None  # until the merge is done, whatever interrupts it
        tensors = merge_tensors(*arguments, out=self._arena)
        values = coefficients.detach().clone()
        self._merged = _Merged(values, versions_of(*inputs), _fingerprint(self._arena))
        return tensors


class _Merged(NamedTuple):
    """What an arena was merged of, and how it looked then."""

    coefficients: Tensor  # values: not every optimizer bumps the version, and addresses come again
    versions: tuple[int, ...]  # of the arenas, the merged one too
    print: Tensor  # of the merged arena: what is changed through .data has no new version


@torch.no_grad()
def _fingerprint(arena: Tensor) -> Tensor:
    """Returns whole numbers ``[tiles]`` made of an arena's bits, modulo 2^64; of a fake none.

    Every factor is odd, so that no single change of a word is missed. A tenth of a merge's time.
    """
    if type(arena) is not Tensor:
        return arena[:0]
    words = arena.view(torch.int64).view(arena.numel() // TILE, -1)
    return words @ _odd_factors(words.shape[1])


@functools.cache
def _odd_factors(count: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    largest = torch.iinfo(torch.int64).max
    with torch.inference_mode(False):
        return 1 | torch.randint(
            -largest, largest, (count,), generator=generator, dtype=torch.int64, device="cpu"
        )


def _block_runner(
    piece: Piece, weights: Sequence[Tensor], forward: Callable[..., Any], turns: Turns
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
        with turns, installed(piece.owners, piece_weights):  # in backward nothing is
            return forward(*args, **kwargs)

    return lambda *args, **kwargs: recomputed(run_once, args, kwargs)
