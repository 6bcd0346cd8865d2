# SPDX-License-Identifier: Apache-2.0
"""λ on its way: under an optimizer, with an order of samples, and their saved state."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.errors import MdftError
from mdft_fast.learning.config import OptimizerConfig
from mdft_fast.learning.objectives import Losses
from mdft_fast.learning.order import BatchOrder
from mdft_fast.learning.outcome import doubts
from mdft_fast.model import MetaModel

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.0),
    "sgd": torch.optim.SGD,
}
# What makes an update that a CUDA graph can hold: the learning rate and the number of the step are
# read where they lie, on the device. SGD's plain loops read a rate on the host, its fused one not.
_CAPTURABLE: dict[str, dict[str, bool]] = {
    "adam": {"fused": True, "capturable": True},
    "adamw": {"fused": True, "capturable": True},
    "sgd": {"fused": True},
}


# λ of more numbers than these is kept as it began and as it is, not of every step: half a million
# over 100 steps would be 200 MB, in memory and in the state that is saved after each.
PATH_NUMBERS = 1 << 14


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What a step did. Tensors are on the device: reading them waits for it.

    Attributes:
        stage: "construct" or "specialize".
        task: stage 2's task, else None.
        step: number of the step, from 1.
        steps: how many there will be.
        losses: each task's loss ``[K]``, detached.
        names: their tasks.
        kept: share of each task's drawn samples that were kept ``[K]``.
        lr: the step's learning rate.
        samples: inputs encoded.
        seconds: the step's wall time, as the host saw it.
    """

    stage: str
    task: str | None
    step: int
    steps: int
    losses: Tensor
    names: tuple[str, ...]
    kept: Tensor
    lr: float
    samples: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, one line of ``metrics.jsonl``."""
        losses = self.losses.tolist()
        return {
            "stage": self.stage,
            "task": self.task,
            "step": self.step,
            "loss": sum(losses),
            "losses": dict(zip(self.names, losses, strict=True)),
            "kept": dict(zip(self.names, self.kept.tolist(), strict=True)),
            "seconds": self.seconds,
            "samples_per_s": self.samples / self.seconds if self.seconds > 0 else None,
            "lr": self.lr,
        }


class Learner:
    """λ on its way: an optimizer, a schedule and the order of samples.

    Args:
        meta: the meta-model whose λ is learned.
        config: how λ is updated.
        steps: how many updates there will be.
        orders: task -> the order in which its samples are drawn.
        capturable: whether :meth:`update` must fit into a CUDA graph. Equal to the plain update
            but for round-off.
    """

    def __init__(
        self,
        meta: MetaModel,
        config: OptimizerConfig,
        steps: int,
        orders: Mapping[str, BatchOrder],
        *,
        capturable: bool = False,
    ) -> None:
        self.meta, self.config, self.steps, self.orders = meta, config, steps, orders
        if not isinstance(meta.coefficients, nn.Parameter):
            raise MdftError(
                "coefficients: must be a plain parameter to be learned, got one that a "
                "parametrization makes"
            )
        if not meta.coefficients.requires_grad or torch.is_inference_mode_enabled():
            raise MdftError("coefficients: must require grad to be learned, got frozen ones")
        self.step = 0
        self.path = [meta.coefficients.detach().clone()]
        options: dict[str, Any] = {"lr": config.lr}
        if capturable:
            lr = torch.tensor(config.lr, device=meta.coefficients.device)
            options = {"lr": lr, **_CAPTURABLE[config.name]}
        self._optimizer = _OPTIMIZERS[config.name]([meta.coefficients], **options)

    def advance(self, update: Callable[[], Losses]) -> tuple[Losses, float]:
        """Makes a step by what updates λ once; returns the losses and the learning rate used.

        Raises:
            MdftError: on the CPU, if λ is no longer finite; on CUDA that shows in :meth:`state`.
        """
        lr = self.config.lr_at(self.step, self.steps)
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        losses = update()
        self.step += 1
        now = self.meta.coefficients.detach().clone()
        if now.numel() > PATH_NUMBERS:
            del self.path[1:]
        self.path.append(now)
        if self.path[-1].device.type == "cpu":
            self._check_finite()
        return losses, lr

    def update(self, losses: Iterable[Tensor]) -> None:
        """Updates λ from the sum of scalar losses. Waits for nothing, so it can be recorded.

        Args:
            losses: one a micro-batch. Each is taken back through its graph before the next is
                asked for, so that one micro-batch's activations are in memory at once.
        """
        self._optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            if not loss.requires_grad:
                raise MdftError(
                    "coefficients: the encoder's output must depend on them, got one without a "
                    "gradient; does the backbone run under no_grad, or detach?"
                )
            loss.backward()
        with torch.device("cpu"):  # what an optimizer makes by default is read on the host
            self._optimizer.step()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Lets updates be tried: λ and the optimizer's state are put back, where they lie."""
        coefficients, states = self.meta.coefficients, self._optimizer.state
        before = coefficients.detach().clone()
        tensors = {k: v.clone() for k, v in states.get(coefficients, {}).items()}
        try:
            yield
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                coefficients.copy_(before)
                for name, value in states.get(coefficients, {}).items():
                    # Made meanwhile: all that these optimizers keep begins at zero.
                    value.copy_(tensors[name]) if name in tensors else value.zero_()

    def _check_finite(self) -> None:
        if not self.path[-1].isfinite().all():
            where = ", ".join(self.orders)
            raise MdftError(
                f"coefficients: must stay finite, got NaN or infinity at step {self.step} of "
                f"{self.steps} (tasks: {where}); lower the learning rate {self.config.lr}, or look "
                "for NaN in the samples"
            )

    def state(self) -> dict[str, Any]:
        """Returns all that a later :meth:`restore` needs to go on bit for bit."""
        self._check_finite()
        return {
            "step": self.step,
            "steps": self.steps,
            "optimizer_config": dataclasses.asdict(self.config),
            "path": torch.stack(self.path).cpu(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),  # a snapshot
            "orders": {name: order.state() for name, order in self.orders.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to where :meth:`state` was taken."""
        mine = {"steps": self.steps, "optimizer_config": dataclasses.asdict(self.config)}
        for key, wanted in mine.items():
            if state.get(key) != wanted:
                raise MdftError(f"resume: {key} must be {wanted}, got {state.get(key)}")
        step, kept = state["step"], len(state["path"])
        wanted = 2 if self.meta.coefficients.numel() > PATH_NUMBERS else step + 1
        if not 0 <= step <= self.steps or kept != min(wanted, step + 1):
            raise MdftError(
                f"resume: step must be from 0 to {self.steps} with {wanted} λ on its path, got "
                f"step {step} with {kept}"
            )
        if set(state["orders"]) != set(self.orders):
            raise MdftError(
                f"resume: tasks must be {sorted(self.orders)}, got {sorted(state['orders'])}"
            )
        self.meta.set_coefficients(state["path"][-1])
        # The groups' options are the configuration's, compared above, and how the update is made,
        # which is this learner's own affair.
        groups = self._optimizer.state_dict()["param_groups"]
        saved = copy.deepcopy(state["optimizer"]["state"])  # else updates would write into it
        self._optimizer.load_state_dict({"state": saved, "param_groups": groups})
        for name, order in self.orders.items():
            order.restore(state["orders"][name])
        self.path = list(state["path"].to(self.meta.coefficients.device))
        self.step = state["step"]


Callback = Callable[[StepRecord, Learner], None]


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """What a stage gives.

    Attributes:
        coefficients: the learned λ, float32 ``[K, L]`` on the CPU.
        path: λ at the start and after every step, float32 ``[steps + 1, K, L]`` on the CPU; of λ of
            more than ``PATH_NUMBERS`` numbers the start and the end alone, ``[2, K, L]``.
        columns: names of λ's columns; ``tasks``: names of its rows, the pool's vectors.
        seconds: wall time of the stage, what a resumed run had done before not counted.
        warnings: what a user should know, one sentence each.
        steps: the step after which λ was each of ``path``.
        rows: how many columns each name stands for, one a row; None: one each.
    """

    coefficients: Tensor
    path: Tensor
    columns: tuple[str, ...]
    tasks: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None


def result_of(
    learner: Learner, stage: str, seconds: float, warnings: tuple[str, ...] = ()
) -> RunResult:
    """Returns a finished learner's result; what looks like a failure is among its warnings."""
    meta = learner.meta
    path = learner.state()["path"]
    every = len(path) == learner.step + 1
    steps = tuple(range(len(path))) if every else (0, learner.step)
    warnings += tuple(doubts(stage, path, learner.step))
    return RunResult(
        path[-1].clone(), path, meta.layout.columns, meta.pool.vector_names, seconds, warnings,
        steps, meta.layout.rows,
    )  # fmt: skip
