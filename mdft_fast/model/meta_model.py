# SPDX-License-Identifier: Apache-2.0
"""The meta-model: a backbone whose weights are the pool's, mixed by λ (equation 1)."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from mdft_fast.arena import Slot, TaskVectors
from mdft_fast.checkpoints import Batch, Entry, check_activation, entry
from mdft_fast.errors import MdftError, nearest
from mdft_fast.model.batches import in_dtype
from mdft_fast.model.feeds import ArenaFeed, Feed, StagedFeed, pinned
from mdft_fast.model.granularity import Granularity, group_columns
from mdft_fast.model.initial_coefficients import StartLike, initial_coefficients, on_tasks
from mdft_fast.model.layerwise import Layerwise
from mdft_fast.model.memory_advice import return_freed_memory
from mdft_fast.model.parametrized import is_plain, originals, write
from mdft_fast.model.parametrized import restore as restore_originals
from mdft_fast.model.partition import cut, find_blocks, find_owners, names_of
from mdft_fast.model.placeholders import empty_copy, exact_copies, restore
from mdft_fast.model.resident import Resident
from mdft_fast.model.turns import Turns
from mdft_fast.ops import merge_tensors
from mdft_fast.pool import Head, Pool

Mode = Literal["resident", "layerwise", "streamed"]
MODES: tuple[Mode, ...] = get_args(Mode)
Precision = Literal["fp32", "bf16"]
DTYPE_OF_PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16}


_FIXED = {
    *("pool", "base", "vectors", "layout"),
    *("mode", "granularity", "precision", "checkpointing"),
}


class MetaModel(nn.Module):
    """An encoder with merged weights. λ is its only parameter.

    All modes give the same numbers; they differ in what is in memory at once, beside activations:

    - "resident": base, task vectors, all merged weights and all their gradients. The fastest.
    - "layerwise": base, task vectors and one block: a block is merged when its forward needs it,
      dropped, merged again in backward, and its gradients are dropped with it.
    - "streamed": two blocks. Base and task vectors stay on the host, where the device is a GPU,
      in pinned memory; on the CPU they stay in the pool's mapped files and are read ahead.

    On the CPU all but plain "resident" tell malloc to give freed tensors back at once, for the
    whole process.

    Args:
        backbone: the module that the pool's tensors belong to. A private copy is made, without
            its weights, always in eval mode; the caller's module is never changed.
        pool: base, task vectors and heads; read, never changed.
        granularity: one coefficient a vector and "task" (all of it), "block", "tensor" or "row".
        start: λ's start: one number, one a vector, or a ``[K, L]`` tensor; or a
            :class:`~mdft_fast.Start`, which makes a merge of the pool's vectors and puts it before
            them. None: 1 at the pool's merge, where it holds one, and 0 at the tasks' vectors;
            else task arithmetic, 0.3.
        mode: where merged weights live, see above.
        precision: of merged weights and activations; "bf16" rounds each weight once, to nearest,
            and the copy's buffers and frozen parameters. λ, its gradient, features and logits
            stay float32.
        checkpointing: whether each block's activations are computed again in backward.
        blocks: names of the modules that are blocks, a ModuleList or Sequential standing for its
            members; None: what lies under the first number in a parameter's name. "layerwise",
            "streamed" and checkpointing go by them. The forward must call each, one after another:
            a module with weights that runs between two blocks must be one too.
        device: where λ, the copy and, but for "streamed", the arenas live; None: where the pool is.

    Attributes:
        coefficients: λ, float32 ``[K, L]``, a Parameter; rows are the pool's vectors, not tasks.
        pool: the one given, or the one that ``start`` made of it.
        base: the pre-trained arena, and ``vectors``: the task vectors.
        layout: where each tensor lies and which column it reads.
        heads: task -> its classifier.

    Raises:
        MdftError: if backbone and pool do not fit, or an option is unknown.
    """

    _backbone: nn.Module
    _turns: Turns
    base: Tensor
    vectors: TaskVectors

    def __init__(
        self,
        backbone: nn.Module,
        pool: Pool,
        *,
        granularity: Granularity = "tensor",
        start: float | Sequence[float] | Tensor | StartLike | None = None,
        mode: Mode = "resident",
        precision: Precision = "fp32",
        checkpointing: bool = False,
        blocks: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["_turns"] = Turns()
        _check_option("mode", mode, MODES)
        _check_option("precision", precision, get_args(Precision))
        if isinstance(start, StartLike):
            pool, start = start.pool_of(pool, backbone), None
        self.pool, self.mode, self.granularity = pool, mode, granularity
        self.precision, self.checkpointing = precision, checkpointing
        self.layout = group_columns(pool.layout, granularity)
        self.heads: dict[str, Head] = dict(pool.heads)
        self.__dict__.update(base=pool.base, vectors=pool.vectors)
        start = initial_coefficients(pool) if start is None else start
        self.coefficients = nn.Parameter(self.as_coefficients(start))
        check_activation(backbone, pool.activation, "the pool")
        # Not a submodule: its empty slots are nobody's parameters.
        private = empty_copy(backbone, pool)
        self._exact = exact_copies(private) if precision != "fp32" else {}
        self.__dict__["_backbone"] = private.to(DTYPE_OF_PRECISION[precision])
        needs_blocks = mode != "resident" or checkpointing
        self._blocks = find_blocks(self._backbone, self.layout, blocks) if needs_blocks else ()
        self._compile_options: dict[str, Any] | None = None  # of torch.compile; None: eager
        if needs_blocks and not is_fake(pool.base):  # a forecast changes nothing
            return_freed_memory()
        self._place(torch.device(device) if device is not None else pool.base.device)

    def _place(self, device: torch.device) -> None:
        """Puts everything on a device, and what runs the backbone with it."""
        if is_plain(self):  # else torch has moved what it is made of
            self.coefficients.data = self.coefficients.data.to(device)
        self._backbone.to(device)
        self.heads = {name: head.to(device) for name, head in self.heads.items()}
        base, vectors = self.base, self.vectors
        if self.mode != "streamed":
            base, vectors = base.to(device), vectors.to(device)
        elif device.type == "cuda":
            base, vectors = pinned(base, vectors)
        self.__dict__.update(base=base, vectors=vectors)
        self._runner = self._make_runner(device)

    def _make_runner(self, device: torch.device) -> Resident | Layerwise:
        module, layout, ties = self._backbone, self.layout, self.pool.ties
        arenas = self.base, self.vectors, layout
        dtype = DTYPE_OF_PRECISION[self.precision]
        outside, blocks = cut(module, layout, ties, self._blocks)
        if self.mode == "resident":
            owners = find_owners(module, layout, ties)
            options = self._compile_options
            runs: Any = module if options is None else torch.compile(module, **options)
            return Resident(runs, owners, blocks, *arenas, dtype=dtype, turns=self._turns)
        feed: Feed = ArenaFeed(*arenas, ahead=self.mode == "streamed")
        if self.mode == "streamed" and device.type != "cpu":
            feed = StagedFeed(*arenas, (outside, *blocks), device)
        names = [slot.name for slot in layout.slots]
        checkpointing = self.checkpointing
        return Layerwise(
            module, outside, blocks, names, feed, dtype=dtype, checkpointing=checkpointing,
            turns=self._turns,
        )  # fmt: skip

    def compile(self, **options: Any) -> None:
        """Runs the backbone through ``torch.compile`` from now on; the first call compiles.

        The merged weights are arguments of the graph: a changed λ compiles nothing anew. What
        :meth:`materialize` returns and the caller's own module stay plain.

        Args:
            options: ``torch.compile``'s own: ``backend``, ``mode``, ``fullgraph``, ...

        Raises:
            MdftError: in another mode, or with checkpointing: work between blocks cuts the graph.
        """
        if self.mode != "resident" or self.checkpointing:
            got = "checkpointing" if self.mode == "resident" else repr(self.mode)
            raise MdftError(
                f"meta-model: compile needs mode 'resident' without checkpointing, got {got}"
            )
        self._compile_options = options
        self._runner = self._make_runner(self.coefficients.device)

    @property
    def merged_elements(self) -> int:
        """Number of merged elements that are in memory at once."""
        return self._runner.elements

    def as_coefficients(self, value: float | Sequence[float] | Tensor) -> Tensor:
        """Returns a new float32 ``[K, L]`` from one number, one a vector, or a whole matrix."""
        shape = (self.pool.K, self.layout.L)
        device = value.device if isinstance(value, Tensor) else "cpu"
        matrix = torch.as_tensor(value, dtype=torch.float32, device=device).detach().clone()
        if matrix.dim() == 1 and matrix.shape[0] == shape[0]:
            matrix = matrix[:, None].expand(shape).clone()
        elif matrix.dim() == 0:
            matrix = matrix.expand(shape).clone()
        if matrix.shape != shape:
            raise MdftError(
                f"coefficients: must be one number, {shape[0]} numbers or {list(shape)}, got "
                f"{list(matrix.shape)}"
            )
        if not matrix.isfinite().all():
            raise MdftError("coefficients: must be finite, got NaN or infinity")
        return matrix

    def individual(self, task: str) -> Tensor:
        """Returns the ``[K, L]`` coefficients that give a task's own model: 1 at it, else 0.

        Raises:
            MdftError: if the task has no vector, or no more: a merge has made one of all.
        """
        names = self.pool.vector_names
        if task not in names:
            self._check_task(task)
            raise MdftError(f"task {task!r}: must have a vector of its own, got {list(names)}")
        matrix = torch.zeros_like(self.coefficients, requires_grad=False)
        matrix[names.index(task)] = 1.0
        return matrix

    def on_tasks(self, value: float) -> Tensor:
        """Returns the ``[K, L]`` coefficients of task arithmetic: 0 at a merge's vector."""
        return self.as_coefficients(on_tasks(self.pool, value))

    def set_coefficients(self, value: float | Sequence[float] | Tensor) -> None:
        """Sets λ's values; see :meth:`as_coefficients`. No gradient flows into ``value``.

        λ under ``torch.nn.utils.parametrize`` is set through the parametrization's inverse.

        Raises:
            MdftError: if the value does not fit, a parametrization cannot give it, or another
                thread is in :meth:`using`.
        """
        wanted = self.as_coefficients(value)
        with self._turns:
            self._turns.check_owner()
            write(self, wanted)

    @contextlib.contextmanager
    def using(self, value: float | Sequence[float] | Tensor) -> Iterator[None]:
        """Sets λ for the length of a ``with``; what it was comes back bit for bit.

        Meanwhile other threads are refused. See :meth:`set_coefficients`.
        """
        with self._turns:
            before = [tensor.detach().clone() for tensor in originals(self)]
            self.set_coefficients(value)
            outer, self._turns.owner = self._turns.owner, threading.get_ident()
        try:
            yield
        finally:
            with self._turns:
                restore_originals(self, before)
                self._turns.owner = outer

    def encode(self, batch: Batch) -> Tensor:
        """Returns the encoder's output, float32 ``[B, D]``, for a batch of B samples.

        Differentiable in λ and in the batch: what the encoder takes, a tensor or, by keyword, a
        mapping of tensors. Floating ones are cast to the model's precision. In mode "resident" on
        the CPU, backward through a graph made before λ changed and was merged anew raises: its
        weights are gone. Threads take turns; :meth:`materialize` gives a module that they share.

        Raises:
            MdftError: while another thread is in :meth:`using`; under autocast outside of
                "resident": autocast saves copies of weights that would outlive their block.
        """
        if self.mode != "resident" and torch.is_autocast_enabled(self.coefficients.device.type):
            raise MdftError(
                f"meta-model: autocast must be off in mode {self.mode!r}, got it on; use "
                "precision 'bf16'"
            )
        inputs = in_dtype(batch, DTYPE_OF_PRECISION[self.precision])
        with self._turns:
            self._turns.check_owner()
            return self._runner.encode(inputs, self.coefficients).float()

    def forward(self, batch: Batch, task: str) -> Tensor:
        """Returns the logits ``[B, C]`` of a task for a batch, see :meth:`encode`."""
        self._check_task(task)
        return self.heads[task](self.encode(batch))

    def weights(self) -> tuple[Tensor, ...]:
        """Returns the merged tensors in the layout's order, views of one buffer.

        Differentiable in λ. In mode "resident" the buffer is the one that is kept.
        """
        if isinstance(self._runner, Resident):
            with self._turns:
                return self._runner.weights(self.coefficients)
        dtype = DTYPE_OF_PRECISION[self.precision]
        coefficients = self.coefficients.to(self.base.device)
        return merge_tensors(self.base, self.vectors, coefficients, self.layout, out_dtype=dtype)

    @torch.no_grad()
    def materialize(self) -> nn.Module:
        """Returns a plain module with the merged weights: a copy, float32, no trace of the pool.

        Merges tensor by tensor: beside the copy, one tensor is in memory.
        """
        with self._turns:  # no weight is in it
            module = copy.deepcopy(self._backbone).float()
        restore(module, self._exact)
        owners = find_owners(module, self.layout, self.pool.ties)
        device = self.coefficients.device
        for slot, places in zip(self.layout.slots, owners, strict=True):
            parameter = nn.Parameter(self._merged(slot).to(device, copy=True))
            for parameters, name in places:
                parameters[name] = parameter
        return module

    def entries(self) -> Iterator[Entry]:
        """Yields what :meth:`materialize`'s state dict would hold, each merged when it is read."""
        with self._turns:
            held = self._backbone.state_dict()  # without the merged weights
        for name, value in held.items():
            yield entry(name, self._exact.get(name, value))
        names = names_of(self.layout, self.pool.ties)
        for slot, all_of_it in zip(self.layout.slots, names, strict=True):
            for name in all_of_it:  # ties: a file holds none
                yield Entry(name, torch.float32, slot.shape, map(self._merged, (slot,)))

    @torch.no_grad()
    def _merged(self, slot: Slot) -> Tensor:
        """Returns one merged tensor in float32, where the arenas are."""
        tiles, coefficients = slot.tile, self.coefficients.to(self.base.device)
        arguments = self.base, self.vectors, coefficients, self.layout
        (weight,) = merge_tensors(*arguments, tiles=(tiles, tiles + slot.tiles))
        return weight

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses to replace what the merged weights come from: it would not be noticed."""
        if name in _FIXED and name in self.__dict__:
            raise MdftError(f"meta-model: {name} must stay; make another MetaModel")
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> MetaModel:
        """Keeps the backbone in eval mode: only λ is trained, and λ has no mode."""
        return super().train(mode)

    def _check_task(self, task: str) -> None:
        if task not in self.pool.names:
            raise MdftError(f"task: must be one of {list(self.pool.names)}, got {task!r}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MetaModel:
        """Moves everything to another device; dtypes stay, since λ is learned in float32."""
        probe = fn(torch.empty(0, device=self.coefficients.device, dtype=torch.float32))
        if probe.dtype != torch.float32:
            raise MdftError(f"meta-model: the dtype must stay float32, got {probe.dtype}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place(probe.device)
        return self


def _check_option(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise MdftError(
            f"meta-model: {name} must be one of {list(known)}, got {value!r}"
            f"{nearest(str(value), known)}"
        )
