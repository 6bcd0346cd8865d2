# SPDX-License-Identifier: Apache-2.0
"""The debiased entropy loss (equations 2 to 6) of all tasks of a step in one launch."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors  # cat of reshapes in one call, twice as fast

from mdft_fast import reference
from mdft_fast.layout import makes_fakes
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._autograd import differentiable_once
from mdft_fast.ops._library import LOADED, native
from mdft_fast.reference import DebiasedEntropy, EntropyOf, Reweight, accumulator

REWEIGHTS: tuple[Reweight, ...] = get_args(Reweight)
ENTROPIES: tuple[EntropyOf, ...] = get_args(EntropyOf)


def debiased_entropy_loss(
    logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    *,
    alpha: float = 1.0,
    mu: float = 0.4,
    entropy_of: EntropyOf = "teacher",
    use_entropy: bool = True,
    filter: bool = True,
    reweight: Reweight = "as_written",
    teacher_entropy: Sequence[Tensor] | None = None,
) -> DebiasedEntropy:
    r"""Computes each task's debiased entropy: filtered, reweighted, value and gradient at once.

    .. math:: \ell = \alpha \, \text{CE}(p, q) + H(q), \quad
        \text{loss}_k = \text{mean over kept } x \text{ of } e^{H_0 - H(x)} \ell(x), \quad
        \text{keep } x \text{ iff } H(x) < H_0 = \mu \log C_k

    Args:
        logits: for each task k ``[B_k, C_k]`` logits of the meta-model; q is their softmax.
            float32, float64, float16 or bfloat16, one dtype and device. -inf counts as
            probability 0.
        teacher_logits: for each task ``[B_k, C_k]`` logits of its own teacher; p is their
            softmax. Data: no gradient flows into them.
        alpha: weight of the soft cross-entropy, >= 0 (no unit). 0: plain entropy minimization.
        mu: threshold of filter and weight as a share of the largest entropy log C, >= 0.
        entropy_of: whose entropy filter and weight read, ``"teacher"`` or ``"meta"``.
        use_entropy: whether the loss holds H(q); False leaves the cross-entropy alone.
        filter: whether rows with H >= H0 are removed.
        reweight: weight of a kept row: ``"off"`` 1, ``"as_written"`` exp(H0 - H),
            ``"normalized"`` the same with mean 1 over the task's kept rows.
        teacher_entropy: for each task ``[B_k]`` H(p) in nats, cached; ``teacher_logits`` then
            holds the probabilities p.

    Returns:
        ``loss`` ``[K]`` (0 where no row is kept), ``entropy`` ``[R]`` the H that filter and weight
        read, in nats, ``weight`` ``[R]`` (0 where removed), ``kept`` ``[R]`` bool; R rows of all
        tasks one after another. float32, float64 for float64 logits.

    Raises:
        ValueError: if an option is unknown or the lists do not match.
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
    z = logits[0]
    if not native("debiased_entropy", z.device, z.dtype):
        return _fallback(
            logits, teacher_logits, teacher_entropy, alpha=alpha, mu=mu, entropy_of=entropy_of,
            use_entropy=use_entropy, filter=filter, reweight=reweight,
        )  # fmt: skip
    row_offsets, task_rows = _offsets(rows, z.device)
    with torch.no_grad():
        teacher = _flatten_dense_tensors(teacher_logits)
    if teacher.dtype != z.dtype:
        teacher = teacher.to(accumulator(z.dtype))
    cached = None
    if teacher_entropy is not None:
        cached = torch.cat([h.detach() for h in teacher_entropy]).to(accumulator(z.dtype))
    loss, entropy, weight, kept, _ = DebiasedEntropyFunction.apply(
        teacher, cached, row_offsets, task_rows, alpha, mu, use_entropy, filter,
        REWEIGHTS.index(reweight), entropy_of == "meta", *logits,
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
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # noqa: D102
        options, flat = args[:_OPTIONS], _flatten_dense_tensors(args[_OPTIONS:])
        return torch.ops.mdft_fast.debiased_entropy(flat, *options)

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        _, entropy, weight, kept, grad = output
        ctx.mark_non_differentiable(entropy, weight, kept, grad)
        ctx.set_materialize_grads(False)
        logits = inputs[_OPTIONS:]
        starts = itertools.accumulate((z.numel() for z in logits), initial=0)
        ctx.places = list(zip((z.shape for z in logits), starts, strict=False))
        # The logits are kept for one reason: a second derivative finds its way to the refusal.
        ctx.save_for_backward(grad, inputs[2], inputs[3], *logits)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:  # noqa: D102
        grad, row_offsets, task_rows, *logits = ctx.saved_tensors
        if grad_loss is None:
            return (None,) * (_OPTIONS + len(logits))
        with torch.no_grad():
            scaled = torch.ops.mdft_fast.debiased_entropy_backward(
                grad, row_offsets, task_rows, grad_loss.contiguous()
            )
        scaled = differentiable_once("debiased_entropy", scaled, *logits, grad_loss)
        assert scaled is not None  # it was a tensor
        # as_strided: half of what a split and a view each would cost.
        pieces = (scaled.as_strided((b, c), (c, 1), start) for (b, c), start in ctx.places)
        return (*(None,) * _OPTIONS, *pieces)


_OPTIONS = 10  # arguments of DebiasedEntropyFunction before the logits
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
        found = [checks.name(z.dtype) for z in logits]
        raise ValueError(f"debiased_entropy: logits must have one dtype, got {found}")
    return tuple((b, c) for b, c in shapes)


def _offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ``row_offsets [R + 1]`` and ``task_rows [K + 1]`` for tasks of (B, C)."""
    if makes_fakes():
        return _make_offsets(rows, device)
    return _kept_offsets(rows, device)


@functools.lru_cache(maxsize=256)
def _kept_offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # kept for training steps, whoever asks first
        return _make_offsets(rows, device)


def _make_offsets(rows: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([c for b, c in rows for _ in range(b)], dtype=torch.int64)
    counts = torch.tensor([b for b, _ in rows], dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    return (
        torch.cat([zero, lengths.cumsum(0)]).to(device),
        torch.cat([zero, counts.cumsum(0)]).to(device),
    )


def _fallback(
    logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    teacher_entropy: Sequence[Tensor] | None,
    **options: Any,
) -> DebiasedEntropy:
    if teacher_entropy is not None:  # softmax(log p) = p, and with it H(p)
        teacher_logits = [p.log() for p in teacher_logits]
    return reference.debiased_entropy(logits, teacher_logits, **options)


def _check_rows(op: str, logits: Tensor, row_offsets: Tensor, task_rows: Tensor) -> None:
    shape = checks.shape
    torch._check(logits.dim() == 1, lambda: f"{op}: logits must be [M], got {shape(logits)}")
    torch._check(
        row_offsets.dim() == 1 and row_offsets.shape[0] >= 1,
        lambda: f"{op}: row_offsets must be [R + 1], got {shape(row_offsets)}",
    )
    torch._check(
        task_rows.dim() == 1 and task_rows.shape[0] >= 1,
        lambda: f"{op}: task_rows must be [K + 1], got {shape(task_rows)}",
    )
    checks.check_floating(op, "logits", logits)
    checks.check_dtype(op, "row_offsets", row_offsets, torch.int64)
    checks.check_dtype(op, "task_rows", task_rows, torch.int64)
    checks.check_beside(op, "logits", logits, row_offsets)
    checks.check_beside(op, "row_offsets", row_offsets, logits)
    checks.check_beside(op, "task_rows", task_rows, logits)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    op, shape = "debiased_entropy", checks.shape
    _check_rows(op, logits, row_offsets, task_rows)
    m, r, k = logits.shape[0], row_offsets.shape[0] - 1, task_rows.shape[0] - 1
    torch._check(
        teacher.dim() == 1 and teacher.shape[0] == m,
        lambda: f"{op}: teacher must be [{m}], got {shape(teacher)}",
    )
    acc = accumulator(logits.dtype)
    torch._check(
        teacher.dtype in (acc, logits.dtype),
        lambda: (
            f"{op}: teacher must be {checks.name(acc)} or the dtype of logits, got "
            f"{checks.name(teacher.dtype)}"
        ),
    )
    checks.check_beside(op, "teacher", teacher, logits)
    if teacher_entropy is not None:
        torch._check(
            teacher_entropy.dim() == 1 and teacher_entropy.shape[0] == r,
            lambda: f"{op}: teacher_entropy must be [{r}], got {shape(teacher_entropy)}",
        )
        checks.check_dtype(op, "teacher_entropy", teacher_entropy, acc)
        checks.check_beside(op, "teacher_entropy", teacher_entropy, logits)
    torch._check(alpha >= 0, lambda: f"{op}: alpha must be >= 0, got {alpha:g}")
    torch._check(mu >= 0, lambda: f"{op}: mu must be >= 0, got {mu:g}")
    torch._check(0 <= reweight <= 2, lambda: f"{op}: reweight must be 0, 1 or 2, got {reweight}")
    return (
        logits.new_empty(k, dtype=acc),
        logits.new_empty(r, dtype=acc),
        logits.new_empty(r, dtype=acc),
        logits.new_empty(r, dtype=torch.bool),
        torch.empty_like(logits),
    )


def _debiased_entropy_backward_fake(
    grad: Tensor, row_offsets: Tensor, task_rows: Tensor, grad_loss: Tensor
) -> Tensor:
    op = "debiased_entropy_backward"
    _check_rows(op, grad, row_offsets, task_rows)
    k = task_rows.shape[0] - 1
    torch._check(
        grad_loss.dim() == 1 and grad_loss.shape[0] == k,
        lambda: f"{op}: grad_loss must be [{k}], got {checks.shape(grad_loss)}",
    )
    checks.check_dtype(op, "grad_loss", grad_loss, accumulator(grad.dtype))
    checks.check_beside(op, "grad_loss", grad_loss, grad)
    return torch.empty_like(grad)


if LOADED:
    torch.library.register_fake("mdft_fast::debiased_entropy", _debiased_entropy_fake)
    torch.library.register_fake(
        "mdft_fast::debiased_entropy_backward", _debiased_entropy_backward_fake
    )
