# SPDX-License-Identifier: Apache-2.0
"""Runs a backbone whose weights never all exist: each piece is merged, used and dropped.

Convolutions, linear layers and norms keep their weights in the graph, so dropping a buffer alone
would free nothing. Hooks on saved tensors put a note in place of every one that lies in the piece's
buffer; the first note that backward reads merges the piece again, once. The backward of that merge
receives all gradients of the piece at once, and both are gone before the piece before it begins.

Under checkpointing a block's forward runs again in backward and merges on its way: no hooks there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mdft_fast.arena import TILE
from mdft_fast.checkpoints import Batch, arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.model.feeds import Feed, shares, versions_of
from mdft_fast.model.partition import Absent, Piece, installed, replaced_forward
from mdft_fast.model.recompute import recomputed
from mdft_fast.model.turns import Turns
from mdft_fast.ops import merge_tensors


class _Pass:
    """One forward pass and the backward passes through it."""

    def __init__(self, coefficients: Tensor, versions: tuple[int, ...]) -> None:
        self.coefficients = coefficients
        self.versions = versions  # of base and task vectors
        # What backward merges with. It asks for a gradient as λ does, so that a recomputation saves
        # the same tensors as the forward did.
        self.snapshot = coefficients.detach().clone().requires_grad_(coefficients.requires_grad)
        self.ran: set[int] = set()  # numbers of the blocks that were called
        self.inside: contextlib.ExitStack | None = None  # leaves the piece that is installed
        self.finished = False  # what runs from now on runs in backward


class _Weight(NamedTuple):
    """Stands in the graph for a tensor that lies in the piece's buffer."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Staged(NamedTuple):
    """Stands in the graph for one of the tensors that the feed brought."""

    number: int


class _Other(NamedTuple):
    """A saved tensor that is no weight, and its version when it was saved."""

    tensor: Tensor
    version: int


class Layerwise:
    """Merges pieces as the forward and the backward pass come to them.

    Args:
        backbone: a private module with empty slots for the merged weights.
        outside: what lies outside of the blocks.
        blocks: the blocks.
        names: of the layout's tensors, for messages.
        feed: brings base and task vectors.
        dtype: of the merged weights.
        checkpointing: whether a block's activations are computed again in backward.
        turns: whose turn it is: backward, too, merges into the buffer.

    Attributes:
        elements: of the largest piece: merged weights that exist at once.
    """

    def __init__(
        self,
        backbone: nn.Module,
        outside: Piece,
        blocks: Sequence[Piece],
        names: Sequence[str],
        feed: Feed,
        *,
        dtype: torch.dtype,
        checkpointing: bool,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._backbone, self._outside, self._blocks = backbone, outside, tuple(blocks)
        self._absent = [
            (piece.owners, [Absent(names[number]) for number in piece.numbers])
            for piece in (outside, *blocks)
        ]
        self._feed, self._dtype, self._checkpointing = feed, dtype, checkpointing
        self.elements = max(piece.elements for piece in (outside, *blocks))
        self._buffer: Tensor | None = None  # kept on the CPU: a fresh one costs page faults
        self._held: tuple[_Pass, Piece] | None = None  # whose weights the buffer holds

    def encode(self, batch: Batch, coefficients: Tensor) -> Tensor:
        """Runs the backbone on a batch with the weights that λ gives."""
        this = _Pass(coefficients, self._feed.versions)
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, this, "finished", True)
            for number, piece in enumerate(self._blocks):
                block = self._backbone.get_submodule(piece.name)
                run = self._block_runner(this, number, block.forward)
                stack.enter_context(replaced_forward(block, run))
            for owners, absent in self._absent:
                stack.enter_context(installed(owners, absent))
            stack.callback(self._leave, this)
            self._enter(this, self._outside, self._blocks[0])
            args, kwargs = arguments_of(batch)
            features: Tensor = self._backbone(*args, **kwargs)
            self._check_all_ran(this)
        return features

    def _block_runner(
        self, this: _Pass, number: int, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Returns a block's forward that merges its weights first."""
        merged = functools.partial(self._run_block, this, number, forward)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._leave(this)
            this.ran.add(number)
            if self._checkpointing and torch.is_grad_enabled():
                out = recomputed(merged, args, kwargs)
            else:
                out = merged(*args, **kwargs)
            if len(this.ran) == len(self._blocks):
                last = self._blocks[-1] if torch.is_grad_enabled() else None
                self._enter(this, self._outside, last)
            return out

        return run

    def _run_block(
        self, this: _Pass, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        following = (*self._blocks, self._outside)[number + 1]
        # In the recomputation of a checkpoint the way leads back.
        if this.finished:
            following = (self._outside, *self._blocks)[number]
        with self._turns:
            self._enter(this, self._blocks[number], following, hooks=not self._checkpointing)
            try:
                out = forward(*args, **kwargs)
            finally:
                self._leave(this)
        return out

    def _enter(
        self, this: _Pass, piece: Piece, following: Piece | None, hooks: bool = True
    ) -> None:
        """Merges a piece and puts its weights into the backbone."""
        stack = contextlib.ExitStack()
        if hooks and torch.is_grad_enabled():
            pack, unpack = self._hooks(this, piece)
            stack.enter_context(saved_tensors_hooks(pack, unpack))
        try:
            coefficients = this.snapshot if this.finished else this.coefficients
            weights = self._merge(this, piece, coefficients, following)
        except BaseException:
            stack.close()
            raise
        if hooks and torch.is_grad_enabled():
            stack.callback(_check_unchanged, weights, versions_of(*weights))
        stack.enter_context(installed(piece.owners, weights))
        this.inside = stack

    def _leave(self, this: _Pass) -> None:
        if this.inside is not None:
            this.inside.close()
            this.inside = None

    def _merge(
        self, this: _Pass, piece: Piece, coefficients: Tensor, following: Piece | None
    ) -> list[Tensor]:
        """Merges a piece into the buffer; returns its tensors, views of the buffer."""
        if this.finished and self._feed.versions != this.versions:
            raise RuntimeError(
                "meta-model: base and task vectors must stay as they were until backward is done, "
                "got ones that were changed in place"
            )
        self._held = None  # until the merge is done, whatever interrupts it
        # An alias with its own version for each range: autograd takes the second merge for a change
        # of the first one's weights otherwise. What is saved is a note, so no version is needed.
        buffer, start = self._space(piece), 0
        weights: list[Tensor] = []
        for part in self._feed.take(piece, following):
            end = start + (part.tiles[1] - part.tiles[0]) * TILE
            weights += merge_tensors(
                part.base, part.vectors, coefficients, part.layout,
                tiles=part.tiles, out=buffer.data[start:end],
            )  # fmt: skip
            start = end
            node = weights[-1].grad_fn if weights else None
            if node is not None:
                node.register_hook(lambda *_: self._drop(this, piece))
        self._held = this, piece
        return weights

    def _space(self, piece: Piece) -> Tensor:
        device = self._feed.device
        if device.type != "cpu":
            self._buffer = torch.empty(piece.elements, dtype=self._dtype, device=device)
        elif self._buffer is None or not _is_ours_alone(self._buffer):
            with torch.inference_mode(False):  # else no later training step could save it
                self._buffer = torch.empty(self.elements, dtype=self._dtype, device="cpu")
        return self._buffer

    def _hooks(
        self, this: _Pass, piece: Piece
    ) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        def pack(tensor: Tensor) -> Any:
            if self._buffer is not None and shares(tensor, self._buffer):
                return _Weight(tensor.size(), tensor.stride(), int(tensor.storage_offset()))
            number = self._feed.find(piece, tensor)
            if number is not None:
                return _Staged(number)
            # Detached: a saved output would keep its own graph, for ever. Its version is shared.
            return _Other(tensor.detach(), tensor._version)

        def unpack(packed: _Weight | _Staged | _Other) -> Tensor:
            if isinstance(packed, _Weight):
                with self._turns:
                    self._again(this, piece)
                    assert self._buffer is not None
                    return self._buffer.as_strided(*packed)
            if isinstance(packed, _Staged):
                with self._turns:
                    return self._feed.tensor(piece, packed.number)
            if packed.tensor._version != packed.version:  # hooks turn autograd's own check off
                raise RuntimeError(
                    "meta-model: a tensor that backward needs has been changed in place"
                )
            return packed.tensor

        return pack, unpack

    @torch.no_grad()
    def _again(self, this: _Pass, piece: Piece) -> None:
        """Merges a piece for backward, unless the buffer holds it."""
        if self._held == (this, piece):
            return
        pieces = (self._outside, *self._blocks)
        before = pieces[max(pieces.index(piece) - 1, 0)]
        self._merge(this, piece, this.snapshot, before)

    def _drop(self, this: _Pass, piece: Piece) -> None:
        """Forgets a piece's weights: backward through it is done."""
        with self._turns:
            if self._held == (this, piece):
                self._held = None
                if self._feed.device.type != "cpu":
                    self._buffer = None

    def _check_all_ran(self, this: _Pass) -> None:
        missing = [p.name for i, p in enumerate(self._blocks) if i not in this.ran]
        if missing:
            raise MdftError(
                f"meta-model: the backbone must call each of its {len(self._blocks)} blocks, got "
                f"no call of {missing[0]!r} ({len(missing)} in all); name the blocks "
                f"(blocks=[...]) or use mode 'resident'"
            )


def _check_unchanged(weights: Sequence[Tensor], versions: tuple[int, ...]) -> None:
    """Refuses weights that the backbone changed: backward would merge them as they were."""
    if versions_of(*weights) != versions:
        raise MdftError(
            "meta-model: a weight must stay as it is merged, got one that the backbone changed in "
            "place; use mode 'resident'"
        )


def _is_ours_alone(buffer: Tensor) -> bool:
    """Returns whether nobody else holds the buffer's storage: a view of a weight that a module kept
    beyond its piece, or a graph of second order, must not be overwritten."""  # noqa: D205, D209
    if type(buffer) is not Tensor:  # a fake has no numbers to overwrite
        return True
    return int(torch._C._storage_Use_Count(buffer.untyped_storage()._cdata)) <= _OWN_USES


_OWN_USES = 2  # the buffer, and the storage object that was just asked for; a test holds it
