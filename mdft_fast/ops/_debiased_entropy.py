# SPDX-License-Identifier: Apache-2.0
"""The debiased entropy loss (equations 2 to 6) of all tasks of a step in one launch."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch._utils import (  # cat of reshapes, split and views: one call each, twice as fast
    _flatten_dense_tensors,
    _unflatten_dense_tensors,
)

from mdft_fast import reference
from mdft_fast.arena import makes_fakes
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._autograd import differentiable_once
from mdft_fast.ops._library import LOADED, dtype_name, native
from mdft_fast.reference import DebiasedEntropy, EntropyOf, Reweight, accumulator

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # the test run executes these annotations
    from jaxtyping import Float

REWEIGHTS: tuple[Reweight, ...] = get_args(Reweight)
ENTROPIES: tuple[EntropyOf, ...] = get_args(EntropyOf)


def debiased_entropy_loss(
    logits: Sequence[Float[Tensor, "_ _"]],
    teacher_logits: Sequence[Float[Tensor, "_ _"]],
    *,
    alpha: float | Float[Tensor, ""] = 1.0,
    mu: float | Float[Tensor, ""] = 0.4,
    entropy_of: EntropyOf = "teacher",
    use_entropy: bool = True,
    filter: bool = True,
    reweight: Reweight = "as_written",
    teacher_entropy: Sequence[Float[Tensor, "_"]] | None = None,
    divide_by: Float[Tensor, "K"] | None = None,
) -> DebiasedEntropy:
    """Computes each task's debiased entropy: filtered, reweighted, value and gradient at once.

        ℓ = α CE(p, q) + H(q)
        loss_k = mean over the kept x of exp(H0 − H(x)) ℓ(x)
        x is kept iff H(x) < H0 = μ log C_k

    Args:
        logits: for each task k ``[B_k, C_k]`` logits of the meta-model; q is their softmax.
            float32, float64, float16 or bfloat16, one dtype and device. -inf counts as
            probability 0.
        teacher_logits: for each task ``[B_k, C_k]`` logits of its own teacher; p is their
            softmax. Data: no gradient flows into them.
        alpha: weight of the soft cross-entropy, >= 0 (no unit). 0: plain entropy minimization.
            Data, as ``mu`` is.
        mu: threshold of filter and weight as a share of the largest entropy log C, >= 0.
        entropy_of: whose entropy filter and weight read, ``"teacher"`` or ``"meta"``.
        use_entropy: whether the loss holds H(q); False leaves the cross-entropy alone.
        filter: whether rows with H >= H0 are removed.
        reweight: weight of a kept row: ``"off"`` 1, ``"as_written"`` exp(H0 - H),
            ``"normalized"`` the same with mean 1 over the task's kept rows.
        teacher_entropy: for each task ``[B_k]`` H(p) in nats, cached; ``teacher_logits`` then
            holds the probabilities p.
        divide_by: ``[K]`` by which each task's sum over the kept rows is divided, for calls that
            see a part of the rows: with what belongs to all of them
            (:func:`mdft_fast.reference.loss_divisor`) the parts' losses and gradients add up to
            the whole's. Of ``"normalized"`` the weight is then exp(H0 - H), since the divisor
            normalizes. Above 0 where rows are kept, else the loss is infinite. float32, float64
            for float64 logits; data, on the logits' device. None: the number of the task's kept
            rows.

    Returns:
        ``loss`` ``[K]`` (0 where no row is kept, whatever ``divide_by``), ``entropy`` ``[R]`` the H
        that filter and weight read, in nats, ``weight`` ``[R]`` (0 where removed), ``kept``
        ``[R]`` bool; R rows of all tasks one after another. float32, float64 for float64 logits.
        Where filter or weight reads an H that is NaN, the row is kept with weight NaN: its task's
        loss and its gradient are NaN. A removed row adds exactly 0 to both, whatever its logits.

    Raises:
        ValueError: if an option is unknown, the lists do not match, or ``alpha``, ``mu`` or
            ``divide_by`` requires grad: none is computed.
        RuntimeError: if dtypes, devices or sizes break the rules above; on double backward.

    ``loss`` is differentiable in ``logits``, with filter and weight held constant; nothing else
    is differentiable. Keeps its gradient ``[M]`` until backward.

    Source:
        Model-driven fine-tuning, equations 2 to 6; the filter is EATA's (arXiv:2204.02610).
    """
    rows = _rows(logits, teacher_logits, teacher_entropy)
    if reweight not in REWEIGHTS or entropy_of not in ENTROPIES:
        raise ValueError(
            f"debiased_entropy: reweight must be one of {list(REWEIGHTS)} and entropy_of one of "
            f"{list(ENTROPIES)}, got {reweight!r} and {entropy_of!r}"
        )
    for name, option in (("alpha", alpha), ("mu", mu), ("divide_by", divide_by)):
        words = f"{name} is data; pass {name}.detach()"
        checks.refuse_gradients("debiased_entropy", words, option)
    alpha, mu = float(alpha), float(mu)
    z = logits[0]
    has_kernel = native("debiased_entropy", z.device, z.dtype)
    row_offsets, task_rows = _offsets(rows, z.device)
    teacher, cached = _join_teachers(teacher_logits, teacher_entropy, z.dtype)
    if not has_kernel:
        _check_for_reference(logits, teacher, cached, alpha, mu, divide_by)
        return reference.debiased_entropy(
            logits, teacher_logits, alpha=alpha, mu=mu, entropy_of=entropy_of,
            use_entropy=use_entropy, filter=filter, reweight=reweight,
            teacher_entropy=teacher_entropy, divide_by=divide_by,
        )  # fmt: skip
    loss, entropy, weight, kept, _ = DebiasedEntropyFunction.apply(
        teacher, cached, row_offsets, task_rows, alpha, mu, use_entropy, filter,
        REWEIGHTS.index(reweight), entropy_of == "meta", divide_by, *logits,
    )  # fmt: skip
    return DebiasedEntropy(loss, entropy, weight, kept)


class DebiasedEntropyFunction(torch.autograd.Function):
    """Autograd around the operator: ``apply`` takes its arguments in the schema's order, but the
    logits last, as one ``[B_k, C_k]`` a task.

    Returns ``loss, entropy, weight, kept, grad``; only ``loss`` is differentiable. The gradient
    is made with the value, and backward scales each task's part by ``grad_output``. Logits are
    joined and their gradients split in here: under autograd that took longer than the operator.
    """  # noqa: D205

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        options, flat = args[:_OPTIONS], _flatten_dense_tensors(args[_OPTIONS:])
        return torch.ops.mdft_fast.debiased_entropy(flat, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, entropy, weight, kept, grad = output
        ctx.mark_non_differentiable(entropy, weight, kept, grad)
        ctx.set_materialize_grads(False)
        # The logits for their shapes, and that a second derivative finds its way to the refusal.
        ctx.save_for_backward(grad, inputs[2], inputs[3], *inputs[_OPTIONS:])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        grad, row_offsets, task_rows, *logits = ctx.saved_tensors
        if grad_loss is None:
            return (None,) * (_OPTIONS + len(logits))
        with torch.no_grad():
            scaled = torch.ops.mdft_fast.debiased_entropy_backward(
                grad, row_offsets, task_rows, grad_loss.contiguous()
            )
        scaled = differentiable_once("debiased_entropy", scaled, *logits, grad_loss)
        assert scaled is not None  # it was a tensor
        return (*(None,) * _OPTIONS, *_parts(scaled, logits))


def _parts(flat: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    if not torch.compiler.is_compiling():
        return _unflatten_dense_tensors(flat, like)
    sizes = [x.shape[0] * x.shape[1] for x in like]  # which may be symbols
    parts = flat.split(sizes)
    return [part.view(x.shape) for part, x in zip(parts, like, strict=True)]


_OPTIONS = 11  # arguments of DebiasedEntropyFunction before the logits
_forward: Any = DebiasedEntropyFunction.forward
_forward.__signature__ = inspect.signature(_forward)  # torch works it out anew at every call


def _rows(
    logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    teacher_entropy: Sequence[Tensor] | None,
) -> tuple[tuple[int, int], ...]:
    """Returns each task's ``(B_k, C_k)``; raises ValueError where the lists do not match."""
    if not logits or len(logits) != len(teacher_logits):
        raise ValueError(
            f"debiased_entropy: logits and teacher_logits must be lists of one [B_k, C_k] a task, "
            f"got {len(logits)} and {len(teacher_logits)}"
        )
    shapes = [z.shape for z in logits]
    for k, (z, t) in enumerate(zip(shapes, [t.shape for t in teacher_logits], strict=True)):
        if len(z) != 2 or z != t:
            raise ValueError(
                f"debiased_entropy: logits and teacher_logits of task {k} must be [B, C], got "
                f"{list(z)} and {list(t)}"
            )
    if teacher_entropy is not None:
        wanted = [[b] for b, _ in shapes]
        got = [list(h.shape) for h in teacher_entropy]
        if wanted != got:
            raise ValueError(f"debiased_entropy: teacher_entropy must be {wanted}, got {got}")
    if len({z.dtype for z in logits}) > 1:
        dtypes = [dtype_name(z.dtype) for z in logits]
        raise ValueError(f"debiased_entropy: logits must have one dtype, got {dtypes}")
    return tuple((b, c) for b, c in shapes)


def _check_for_reference(
    logits: Sequence[Tensor],
    teacher: Tensor,
    cached: Tensor | None,
    alpha: float,
    mu: float,
    divide_by: Tensor | None,
) -> None:
    op, z = "debiased_entropy", logits[0]
    rule = "float32, float64, float16 or bfloat16"
    checks.require(z.dtype in checks.FLOATING, op, "logits", rule, dtype_name(z.dtype))
    others = {"teacher": teacher, "teacher_entropy": cached, "divide_by": divide_by}
    checks.check_devices(op, z, **others)
    checks.require(alpha >= 0, op, "alpha", ">= 0", f"{alpha:g}")
    checks.require(mu >= 0, op, "mu", ">= 0", f"{mu:g}")
    if divide_by is not None:
        tasks, acc = [len(logits)], accumulator(z.dtype)
        fits, dtype = list(divide_by.shape) == tasks, divide_by.dtype
        checks.require(fits, op, "divide_by", tasks, checks.shape(divide_by))
        checks.require(dtype == acc, op, "divide_by", dtype_name(acc), dtype_name(dtype))


def _join_teachers(
    teacher_logits: Sequence[Tensor], teacher_entropy: Sequence[Tensor] | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Returns all teachers' rows as the operator reads them beside logits of ``dtype``."""
    with torch.no_grad():
        teacher = _flatten_dense_tensors(teacher_logits)
    if teacher.dtype != dtype:
        teacher = teacher.to(accumulator(dtype))
    if teacher_entropy is None:
        return teacher, None
    cached = torch.cat([h.detach() for h in teacher_entropy])
    return teacher, cached.to(accumulator(dtype))


def _offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ``row_offsets [R + 1]`` and ``task_rows [K + 1]`` for tasks of (B, C)."""
    if torch.compiler.is_compiling():
        return _traced_offsets(rows, device)
    if makes_fakes():
        return _make_offsets(rows, device)
    return _kept_offsets(rows, device)


def _traced_offsets(
    rows: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Makes offsets of sizes that may be symbols: one graph then serves every batch."""
    row_parts, task_parts, elements, count = [], [], 0, 0
    for b, c in rows:
        row_parts.append(elements + c * torch.arange(b, device=device))
        task_parts.append(torch.full((1,), count, dtype=torch.int64, device=device))
        elements, count = elements + b * c, count + b
    for parts, end in ((row_parts, elements), (task_parts, count)):
        parts.append(torch.full((1,), end, dtype=torch.int64, device=device))
    return torch.cat(row_parts), torch.cat(task_parts)


@functools.lru_cache(maxsize=256)
def _kept_offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # kept for training steps, whoever asks first
        return _make_offsets(rows, device)


def _make_offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    whole: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
    lengths = torch.tensor([c for b, c in rows for _ in range(b)], **whole)
    counts = torch.tensor([b for b, _ in rows], **whole)
    zero = torch.zeros(1, **whole)
    return (
        torch.cat([zero, lengths.cumsum(0)]).to(device),
        torch.cat([zero, counts.cumsum(0)]).to(device),
    )


def _debiased_entropy_fake(
    logits: Tensor,
    teacher: Tensor,
    teacher_entropy: Tensor | None,
    row_offsets: Tensor,
    task_rows: Tensor,
    alpha: float,
    mu: float,
    use_entropy: bool,
    filter: bool,
    reweight: int,
    entropy_of_meta: bool,
    divide_by: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    others = {"teacher": teacher, "teacher_entropy": teacher_entropy, "divide_by": divide_by}
    offsets = {"row_offsets": row_offsets, "task_rows": task_rows}
    checks.check_devices("debiased_entropy", logits, **offsets, **others)
    acc, K, R = accumulator(logits.dtype), task_rows.shape[0] - 1, row_offsets.shape[0] - 1
    return (
        logits.new_empty(K, dtype=acc),
        logits.new_empty(R, dtype=acc),
        logits.new_empty(R, dtype=acc),
        logits.new_empty(R, dtype=torch.bool),
        torch.empty_like(logits),
    )


def _debiased_entropy_backward_fake(
    grad: Tensor, row_offsets: Tensor, task_rows: Tensor, grad_loss: Tensor
) -> Tensor:
    others = {"row_offsets": row_offsets, "task_rows": task_rows, "grad_loss": grad_loss}
    checks.check_devices("debiased_entropy_backward", grad, **others)
    return torch.empty_like(grad)


if LOADED:
    torch.library.register_fake("mdft_fast::debiased_entropy", _debiased_entropy_fake)
    torch.library.register_fake(
        "mdft_fast::debiased_entropy_backward", _debiased_entropy_backward_fake
    )
