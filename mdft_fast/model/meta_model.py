# SPDX-License-Identifier: Apache-2.0
"""The meta-model: a backbone whose weights are the pool's, mixed by λ (equation 1)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mdft_fast.errors import MdftError
from mdft_fast.model.granularity import Granularity, group_columns
from mdft_fast.ops import merge_tensors
from mdft_fast.pool import Head, Pool

Mode = Literal["resident"]
MODES: tuple[Mode, ...] = get_args(Mode)


class MetaModel(nn.Module):
    """An image encoder with merged weights. λ is its only parameter.

    Args:
        backbone: the module that the pool's tensors belong to. A private copy is made, without
            its weights, always in eval mode; the caller's module is never changed.
        pool: base, task vectors and heads; read, never changed.
        granularity: one coefficient a task and "task" (all of it), "block" or "tensor".
        start: λ's start: one number, one a vector, or a ``[K, L]`` tensor.
        mode: "resident": the whole arena is merged once a step and kept.
        device: where arenas, λ and the copy live; None: where the pool is.

    Attributes:
        coefficients: λ, float32 ``[K, L]``, a Parameter.
        layout: where each tensor lies and which column it reads.
        heads: task -> its classifier.

    Raises:
        MdftError: if backbone and pool do not fit, or an option is unknown.
    """

    base: Tensor
    codes: Tensor
    _backbone: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        pool: Pool,
        *,
        granularity: Granularity = "tensor",
        start: float | Sequence[float] | Tensor = 0.3,
        mode: Mode = "resident",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise MdftError(f"meta-model: mode must be one of {list(MODES)}, got {mode!r}")
        device = torch.device(device) if device is not None else pool.base.device
        self.pool, self.mode, self.granularity = pool, mode, granularity
        self.layout = group_columns(pool.layout, granularity)
        self.heads: dict[str, Head] = {k: h.to(device) for k, h in pool.heads.items()}
        self.register_buffer("base", pool.base.to(device), persistent=False)
        self.register_buffer("codes", pool.vectors.codes.to(device), persistent=False)
        self.coefficients = nn.Parameter(self.as_coefficients(start).to(device))
        # Not a submodule: its empty slots are nobody's parameters.
        self.__dict__["_backbone"] = _empty_copy(backbone, pool, device)
        self._slots = _find_slots(self._backbone, pool)
        self._arena: Tensor | None = None
        self._merged: Tensor | None = None  # the λ that the arena holds

    def as_coefficients(self, value: float | Sequence[float] | Tensor) -> Tensor:
        """Returns a new float32 ``[K, L]`` from one number, one a vector, or a whole matrix."""
        shape = (self.pool.K, len(self.layout.columns))
        given = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        if given.dim() == 1 and given.shape[0] == shape[0]:
            given = given[:, None].expand(shape).clone()
        elif given.dim() == 0:
            given = given.expand(shape).clone()
        if given.shape != shape:
            raise MdftError(
                f"coefficients: must be one number, {shape[0]} numbers or {list(shape)}, got "
                f"{list(given.shape)}"
            )
        if not given.isfinite().all():
            raise MdftError("coefficients: must be finite, got NaN or infinity")
        return given

    def individual(self, task: str) -> Tensor:
        """Returns the ``[K, L]`` coefficients that give a task's own model: 1 at it, else 0."""
        matrix = torch.zeros_like(self.coefficients, requires_grad=False)
        matrix[self._number(task)] = 1.0
        return matrix

    @torch.no_grad()
    def set_coefficients(self, value: float | Sequence[float] | Tensor) -> None:
        """Sets λ; see :meth:`as_coefficients`."""
        self.coefficients.copy_(self.as_coefficients(value))

    @contextlib.contextmanager
    def using(self, value: float | Sequence[float] | Tensor) -> Iterator[None]:
        """Sets λ for the length of a ``with``; what it was comes back bit for bit."""
        before = self.coefficients.detach().clone()
        self.set_coefficients(value)
        try:
            yield
        finally:
            with torch.no_grad():
                self.coefficients.copy_(before)

    def encode(self, x: Tensor) -> Tensor:
        """Returns the encoder's output ``[B, D]`` for images ``[B, 3, H, W]``.

        Differentiable in λ and in ``x``. On the CPU weights are merged where λ has changed since
        the last call, and used again where not; backward through a graph made before λ changed
        and was merged anew raises: its weights are gone. On CUDA every call merges into a fresh
        buffer: to compare λ would wait for the device, and memory is at hand there.
        """
        with self._installed(self.weights()):
            features: Tensor = self._backbone(x)
        return features

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Returns the logits ``[B, C]`` of a task for images ``[B, 3, H, W]``."""
        self._number(task)
        return self.heads[task](self.encode(x))

    def weights(self) -> tuple[Tensor, ...]:
        """Returns the merged tensors in the layout's order, views of one buffer."""
        arguments = self.base, self.codes, self.coefficients, self.layout
        if self.base.device.type != "cpu":
            return merge_tensors(*arguments)
        if self._arena is None:
            with torch.inference_mode(False):  # else no later training step could save it
                self._arena = torch.empty_like(self.base)
        # Values, not versions: not every optimizer bumps a version, and addresses come again.
        current = self._merged is not None and torch.equal(self._merged, self.coefficients)
        if not current:
            self._merged = None  # until the merge is done, whatever interrupts it
        tensors = merge_tensors(*arguments, out=self._arena, current=current)
        self._merged = self.coefficients.detach().clone()
        return tensors

    @torch.no_grad()
    def materialize(self) -> nn.Module:
        """Returns a plain module with the merged weights: a copy, float32, no trace of the pool."""
        module = copy.deepcopy(self._backbone)
        slots = _find_slots(module, self.pool)
        for owners, weight in zip(slots, self.weights(), strict=True):
            parameter = nn.Parameter(weight.clone())
            for parameters, name in owners:
                parameters[name] = parameter
        return module

    def train(self, mode: bool = True) -> MetaModel:
        """Keeps the backbone in eval mode: only λ is trained, and λ has no mode."""
        return super().train(mode)

    @contextlib.contextmanager
    def _installed(self, weights: Sequence[Tensor]) -> Iterator[None]:
        for owners, weight in zip(self._slots, weights, strict=True):
            for parameters, name in owners:
                parameters[name] = weight
        try:
            yield
        finally:  # an installed weight would keep its graph alive
            for owners in self._slots:
                for parameters, name in owners:
                    parameters[name] = None

    def _number(self, task: str) -> int:
        if task not in self.pool.names:
            raise MdftError(f"task: must be one of {list(self.pool.names)}, got {task!r}")
        return self.pool.names.index(task)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MetaModel:
        """Moves everything to another device; dtypes stay, since λ is learned in float32."""
        probe = fn(torch.empty(0, device=self.coefficients.device))
        if probe.dtype != torch.float32:
            raise MdftError(f"meta-model: the dtype must stay float32, got {probe.dtype}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._backbone._apply(fn)
        self.heads = {name: head.to(probe.device) for name, head in self.heads.items()}
        self._arena = self._merged = None
        return self


Owners = list[tuple[dict[str, Any], str]]  # a module's parameters and the name among them


def _empty_copy(backbone: nn.Module, pool: Pool, device: torch.device) -> Any:
    """Copies a module without the weights that the pool replaces; the rest is the pool's base."""
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    shapes = {slot.name: slot.shape for slot in pool.layout.slots}
    for name, shape in shapes.items():
        if name not in parameters or tuple(parameters[name].shape) != shape:
            got = list(parameters[name].shape) if name in parameters else "no such parameter"
            raise MdftError(f"backbone: {name} must be {list(shape)} as in the pool, got {got}")
    _check_known(backbone, pool, shapes)
    # Found in its memo, a weight is taken by deepcopy for copied already: none is ever made.
    empty = nn.Parameter(torch.empty(0), requires_grad=False)
    clone = copy.deepcopy(backbone, {id(parameters[name]): empty for name in shapes})
    for module in clone.modules():
        for name, parameter in module._parameters.items():
            if parameter is empty:
                module._parameters[name] = None
    clone.to(device).eval().requires_grad_(False)
    kept = {name: value.to(device) for name, value in pool.buffers.items()}
    with torch.no_grad():
        for name, value in (*clone.named_parameters(), *clone.named_buffers()):
            if name in kept:
                value.copy_(kept[name])
    return clone


def _check_known(backbone: nn.Module, pool: Pool, merged: dict[str, tuple[int, ...]]) -> None:
    """Refuses a tensor of the backbone that the pool does not have, or has in another shape."""
    for name, value in backbone.state_dict().items():
        if name in merged or pool.left_out.get(name, "").startswith("tied to "):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue  # counters and the like: a checkpoint may lack them
        held = pool.buffers.get(name)
        if held is None or held.shape != value.shape:
            wanted = "absent, as in the pool" if held is None else f"{list(held.shape)}"
            raise MdftError(f"backbone: {name} must be {wanted}, got {list(value.shape)}")


def _find_slots(module: nn.Module, pool: Pool) -> list[Owners]:
    """Returns, for each tensor of the pool, the places in a module that hold it (ties: several)."""
    aliases: dict[str, list[str]] = {}
    for name, why in pool.left_out.items():
        if why.startswith("tied to "):
            aliases.setdefault(why.removeprefix("tied to ").strip("'"), []).append(name)
    slots = []
    for slot in pool.layout.slots:
        owners: Owners = []
        for name in (slot.name, *aliases.get(slot.name, ())):
            path, _, leaf = name.rpartition(".")
            owners.append((module.get_submodule(path)._parameters, leaf))
        slots.append(owners)
    return slots
