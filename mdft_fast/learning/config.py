# SPDX-License-Identifier: Apache-2.0
"""What the stages can be told. Defaults are METHOD's bold column (``preset: paper``)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from mdft_fast.errors import MdftError, nearest
from mdft_fast.reference import EntropyOf, Reweight

Draw = Literal["kept", "batch"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Representation = Literal["encoder", "normalized", "logits"]


def _choice(key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise MdftError(
            f"{key}: must be one of {list(known)}, got {value!r}{nearest(str(value), known)}"
        )


def _positive(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MdftError(f"{key}: must be a whole number above 0, got {value!r}")


def _check_micro_batch(value: Any) -> None:
    if value is not None:
        _positive("micro_batch", value)


def _check_cuda_graph(stage: str, value: Any, micro_batch: int | None) -> None:
    if not isinstance(value, bool):
        raise MdftError(f"{stage}.cuda_graph: must be true or false, got {value!r}")
    if value and micro_batch is not None:
        raise MdftError(
            f"{stage}.cuda_graph: records a step's rows at once, so micro_batch must be unset, got "
            f"{micro_batch}"
        )


def _at_least_zero(key: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise MdftError(f"{key}: must be a finite number >= 0, got {value}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How λ is updated.

    Attributes:
        name: "adam", "adamw" (no weight decay: λ = 0 is no better than any other) or "sgd".
        lr: learning rate, above 0.
        schedule: "constant", or "cosine" from lr to 0 over the steps.
    """

    name: Optimizer = "adam"
    lr: float = 1e-3  # AdaMerging's; not given in the paper
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        _choice("optimizer.name", self.name, get_args(Optimizer))
        _choice("optimizer.schedule", self.schedule, get_args(Schedule))
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise MdftError(f"optimizer.lr: must be above 0, got {self.lr}")

    def lr_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclasses.dataclass(frozen=True)
class ConstructConfig:
    """Stage 1: learn one λ for all tasks.

    Attributes:
        steps: number of updates of λ.
        batch: samples a task and step.
        draw: "kept": a step draws from each task's kept samples, and no removed one is ever
            encoded. "batch": it draws from all, and removed rows are masked in the loss (the
            paper's order).
        alpha: weight of the teacher's cross-entropy, >= 0.
        use_entropy: whether the loss holds the meta-model's entropy.
        reweight: weight of a kept sample: "as_written" exp(H0 - H), "normalized" to mean 1 over
            the kept samples of a step, "off" 1.
        filter: whether samples with H >= H0 are removed.
        mu: H0 = mu log C, >= 0.
        entropy_of: whose H, "teacher" (constant) or "meta" (each step's; needs draw "batch").
        optimizer: how λ is updated.
        holdout: share of the unlabelled samples kept apart for label-free choices, [0, 1).
        seed: of the split and of the order of samples.
        micro_batch: images encoded at once; None: all of a step's. Gradients of λ are summed, so
            this changes the memory that a step takes and nothing else, but for round-off.
        cuda_graph: whether a step is recorded once and replayed (CUDA; mode "resident" or
            "layerwise"). λ is the same but for round-off.
    """

    steps: int = 100
    batch: int = 16  # AdaMerging's; not given in the paper
    draw: Draw = "kept"
    alpha: float = 1.0  # not given in the paper
    use_entropy: bool = True
    reweight: Reweight = "as_written"
    filter: bool = True
    mu: float = 0.4  # not given in the paper; EATA's value
    entropy_of: EntropyOf = "teacher"
    optimizer: OptimizerConfig = OptimizerConfig()
    holdout: float = 0.2
    seed: int = 0
    micro_batch: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        _positive("construct.steps", self.steps)
        _check_micro_batch(self.micro_batch)
        _check_cuda_graph("construct", self.cuda_graph, self.micro_batch)
        _positive("construct.batch", self.batch)
        _choice("construct.draw", self.draw, get_args(Draw))
        _choice("construct.reweight", self.reweight, get_args(Reweight))
        _choice("construct.entropy_of", self.entropy_of, get_args(EntropyOf))
        _at_least_zero("construct.alpha", self.alpha)
        _at_least_zero("construct.mu", self.mu)
        if not 0 <= self.holdout < 1:
            raise MdftError(f"construct.holdout: must be in [0, 1), got {self.holdout}")
        if self.alpha == 0 and not self.use_entropy:
            raise MdftError("construct: alpha 0 without entropy leaves no objective, got both off")
        if self.entropy_of == "meta" and self.micro_batch is not None:
            raise MdftError(
                "construct.entropy_of: 'meta' needs a step's rows at once, so micro_batch must be "
                f"unset, got {self.micro_batch}"
            )
        if self.entropy_of == "meta" and self.draw == "kept" and self.filter:
            raise MdftError(
                "construct.entropy_of: 'meta' filters anew each step, so draw must be 'batch', "
                "got 'kept'"
            )


@dataclasses.dataclass(frozen=True)
class SpecializeConfig:
    """Stage 2: align the meta-model with one task's own model (equation 7).

    Attributes:
        steps: number of updates of λ.
        batch: samples a step, fresh ones each.
        representation: what is aligned: "encoder" the encoder's output, "normalized" the same at
            length 1, "logits" the task's logits.
        optimizer: how λ is updated. 1e-3 moves λ by ~0.02 in 20 steps and is useless.
        holdout: as in stage 1, so that both learn from the same samples.
        seed: of the split and of the order of samples.
        micro_batch: images encoded at once, as in stage 1.
        cuda_graph: whether a step is recorded once and replayed, as in stage 1.
    """

    steps: int = 20
    batch: int = 64
    representation: Representation = "encoder"
    optimizer: OptimizerConfig = OptimizerConfig(lr=0.05)
    holdout: float = 0.2
    seed: int = 0
    micro_batch: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        _positive("specialize.steps", self.steps)
        _check_micro_batch(self.micro_batch)
        _check_cuda_graph("specialize", self.cuda_graph, self.micro_batch)
        _positive("specialize.batch", self.batch)
        _choice("specialize.representation", self.representation, get_args(Representation))
        if not 0 <= self.holdout < 1:
            raise MdftError(f"specialize.holdout: must be in [0, 1), got {self.holdout}")
