# SPDX-License-Identifier: Apache-2.0
"""debiased_entropy_loss against plain torch: padded and vectorized, compiled, task by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mdft_fast
from benchmarks.harness import Case, Compete, agree
from benchmarks.machine import Machine
from benchmarks.shapes import CLASSES
from mdft_fast import reference

MU = 0.4
WARM = 20  # calls a turn, after which the caches hold what they need
Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def make_logits(classes: Sequence[int], batch: int, device: torch.device) -> list[list[Tensor]]:
    """Draws the meta-model's and the teachers' logits, ``[batch, C_k]`` each; some teachers are
    sure, some are not, so that the filter has something to do."""  # noqa: D205, D209
    random = torch.Generator().manual_seed(0)
    pairs: list[list[Tensor]] = [[], []]
    for C in classes:
        sureness = 1 + 3 * torch.rand(batch, 1, generator=random)
        pairs[0].append((3 * torch.randn(batch, C, generator=random)).to(device))
        pairs[1].append((sureness * 2 * torch.randn(batch, C, generator=random)).to(device))
    return pairs


def ours(logits: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """One launch for all tasks, value and gradient together."""
    return mdft_fast.debiased_entropy_loss(logits, teacher, mu=MU).loss


def by_task(logits: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Task by task, in the steps of the equations."""
    return reference.debiased_entropy(logits, teacher, mu=MU).loss


def _pad(rows: Sequence[Tensor], classes: int) -> Tensor:
    """``[K, B, C]``: a missing class is impossible."""
    return torch.stack([F.pad(z, (0, classes - z.shape[1]), value=-math.inf) for z in rows])


def _padded_loss(z: Tensor, t: Tensor, real: Tensor, threshold: Tensor) -> Tensor:
    """All tasks at once: ``[K, B, C]`` logits, the mask of real classes, H0 of each task."""
    with torch.no_grad():
        log_p = t.log_softmax(-1).masked_fill(~real, 0.0)
        p = t.softmax(-1)
        entropy = -(p * log_p).sum(-1)
        kept = entropy < threshold
        weight = (threshold - entropy).exp() * kept / kept.sum(-1, keepdim=True).clamp(min=1)
    log_q = z.log_softmax(-1).masked_fill(~real, 0.0)
    q = log_q.exp() * real
    rows = -((p + q) * log_q).sum(-1)
    return (weight * rows).sum(-1)


def padded(
    classes: Sequence[int], batch: int, device: torch.device, compile_it: bool = False
) -> Loss:
    """Vectorized over tasks padded to the largest number of classes."""
    most = max(classes)
    counts = torch.tensor(classes, device=device)
    real = (torch.arange(most, device=device) < counts[:, None])[:, None].expand(-1, batch, -1)
    real = real.contiguous()
    threshold = MU * counts.float().log()[:, None]

    def loss(logits: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            t = _pad(teacher, most)
        return _padded_loss(_pad(logits, most), t, real, threshold)

    return torch.compile(loss) if compile_it else loss


def forward(loss: Loss, leaves: Sequence[Tensor], teacher: Sequence[Tensor]) -> Callable[[], Any]:
    """The value alone."""
    return torch.no_grad()(lambda: [loss(leaves, teacher)])


def both(loss: Loss, leaves: Sequence[Tensor], teacher: Sequence[Tensor]) -> Callable[[], Any]:
    """Each task's loss, and the gradient of their sum."""
    ones = torch.ones(len(leaves), device=leaves[0].device)

    @torch.enable_grad()
    def call() -> Any:
        value = loss(leaves, teacher)
        return [value.detach(), *torch.autograd.grad(value, leaves, ones)]

    return call


def backward(loss: Loss, leaves: Sequence[Tensor], teacher: Sequence[Tensor]) -> Callable[[], Any]:
    """The gradient of a graph that stays: compiled ones may refuse."""
    held: list[Tensor] = []  # the graph, made at the first call
    ones = torch.ones(len(leaves), device=leaves[0].device)

    @torch.enable_grad()
    def call() -> Any:
        if not held:
            held.append(loss(leaves, teacher))
        return torch.autograd.grad(held[0], leaves, ones, retain_graph=True)

    return call


def check(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Compares values and gradients."""
    for a, b in zip(mine, theirs, strict=True):
        agree(a, b, 1e-5)


def cases(classes: str, batch: int, device: torch.device) -> Iterator[Case]:
    """Forward; backward alone; both, with cold caches and with warm ones."""
    logits, teacher = make_logits(CLASSES[classes], batch, device)
    leaves = [z.requires_grad_() for z in logits]
    losses: dict[str, Loss] = {
        "padded": padded(CLASSES[classes], batch, device),
        "task by task": by_task,
        "torch.compile of padded": padded(CLASSES[classes], batch, device, compile_it=True),
    }
    name = f"{classes}, {len(leaves)} tasks x {batch} rows"
    for what, wrap, calls in (
        ("forward", forward, WARM),
        ("backward", backward, WARM),
        ("both, cold caches", both, 1),  # as after a large model's forward pass
        ("both", both, WARM),
    ):
        rivals = {rival: wrap(loss, leaves, teacher) for rival, loss in losses.items()}
        yield Case(
            "debiased_entropy", f"{name}, {what}",
            wrap(ours, leaves, teacher), rivals, check, calls=calls,
        )  # fmt: skip


@pytest.mark.parametrize("classes", CLASSES)
def test_debiased_entropy(classes: str, machine: Machine, compete: Compete) -> None:
    """Value and gradient, warm."""
    *_, last = cases(classes, 16, machine.device)
    compete(last, rounds=50)
