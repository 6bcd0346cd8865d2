# SPDX-License-Identifier: Apache-2.0
"""Fisher merging: each element follows the tasks whose predictions depend on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdft_fast.checkpoints import arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.method import InputMerge, Watch, mean_of
from mdft_fast.methods.walk import Walk
from mdft_fast.model import Batch, each, tensors_of
from mdft_fast.options import Interval, check
from mdft_fast.pool import Head, Pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher(InputMerge):
    """Takes the mean of the models, element by element, by how much predictions depend on it.

        F_k = mean_x (∂ log p_k(c | x) / ∂θ)²,  c drawn from p_k(· | x), in task k's own model
        τ   = mean τ + Σ_k s_k F_k (τ_k − mean τ) / (Σ_k s_k F_k + floor · their mean)

    Squares are of each input's own gradient: of a batch's sum they would hold its cross terms. The
    classes are drawn, so no label is read. All tensors are merged so. The floor draws towards the
    mean, which is what remains where no prediction depends on an element.

    Attributes:
        normalize: whether s_k divides by the mean of F_k, so that all tasks weigh the same; else
            it is 1.
        floor: of the sum of the F_k, as a share of its mean over the model.
        batch: inputs that are loaded at once; each has a pass of its own.
    """

    normalize: bool = True
    floor: Annotated[float, Interval(gt=0)] = 1e-3

    name = "fisher"
    source = "arXiv:2111.09832"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        """See :class:`InputMerge`."""
        walk = Walk(pool, backbone, inputs)
        total = {name: torch.zeros_like(walk.base(name)) for name in walk.names}
        moved = {name: torch.zeros_like(walk.base(name)) for name in walk.names}
        for k, task in enumerate(inputs):
            watch(k, len(inputs))
            if task.name not in pool.heads:
                raise MdftError(f"{self.name}: needs a head of every task, got {list(pool.heads)}")
            diagonal = self._diagonal(walk, k, pool.heads[task.name].to(task.device))
            scale = 1.0
            if self.normalize and (mean := _mean(diagonal)) > 0:
                scale = 1 / mean
            for name, part in diagonal.items():
                part.mul_(scale)
                deltas = walk.deltas(name)
                total[name] += part
                moved[name].addcmul_(part, deltas[k] - mean_of(deltas))
        watch(len(inputs), len(inputs))
        floor = max(self.floor * _mean(total), torch.finfo(torch.float32).tiny)
        return {
            name: mean_of(walk.deltas(name)) + moved[name] / (total[name] + floor)
            for name in walk.names
        }

    def _diagonal(self, walk: Walk, k: int, head: Head) -> dict[str, Tensor]:
        """Returns a task's F_k, by tensor; float32 ``[*shape]``."""
        squares = {name: torch.zeros_like(walk.base(name)) for name in walk.names}
        generator = torch.Generator().manual_seed(self.seed)
        walk.module.requires_grad_(False)  # what is not merged has no gradient to keep
        with walk.as_teacher(k, walk.names), torch.enable_grad():
            for name, parameter in walk.parameters(walk.names).items():
                parameter.requires_grad_()

                def square(seen: Tensor, name: str = name) -> None:
                    # At once, so that no more than one tensor's gradient is in memory.
                    assert seen.grad is not None
                    squares[name].addcmul_(seen.grad, seen.grad)
                    seen.grad = None

                parameter.register_post_accumulate_grad_hook(square)
            for one in _singly(walk.inputs[k].batches(self.batch)):
                args, kwargs = arguments_of(one)
                logits = head(walk.module(*args, **kwargs))
                # On the host: the same classes on every device.
                likely = logits.detach().softmax(-1).cpu()
                drawn = torch.multinomial(likely, 1, generator=generator)[:, 0]
                # In float64, where the gradient of a sure prediction is more than round-off.
                F.cross_entropy(logits.double(), drawn.to(logits.device)).backward()
        for part in squares.values():
            part.div_(len(walk.inputs[k]))
        return squares


def _singly(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches of one sample each."""
    for batch in batches:
        for at in range(len(next(tensors_of(batch)))):
            yield _sample(batch, at)


def _sample(batch: Batch, at: int) -> Batch:
    # A copy: how memory is aligned decides the order of a product's sums on some processors.
    return each(lambda tensor: tensor[at : at + 1].clone(), batch)


def _mean(diagonal: Mapping[str, Tensor]) -> float:
    """Returns the mean over all elements of a model, summed in float64."""
    total = sum(float(part.sum(dtype=torch.float64)) for part in diagonal.values())
    return total / max(sum(part.numel() for part in diagonal.values()), 1)
