# SPDX-License-Identifier: Apache-2.0
"""What the stages can be told: keys, choices, defaults and their meanings, for all who ask.

The recipe's sections, its presets, `mdft init` and docs/recipes.md are made of these classes; how
is in :mod:`mdft_fast.options`. The defaults are ``preset: paper``: the paper's values where it
gives them, and those in docs/method.md where it leaves them open.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from mdft_fast.errors import MdftError
from mdft_fast.model import HOLDOUT
from mdft_fast.options import Interval, Positive, Share, Weight, check
from mdft_fast.reference import EntropyOf, Reweight

Draw = Literal["kept", "batch"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Representation = Literal["encoder", "normalized", "logits"]
Batch = Annotated[int, Interval(ge=1, le=1_000_000)]  # more is a slip of the finger


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How λ is updated.

    Attributes:
        name: which optimiser. adamw is without weight decay: λ = 0 is no better than any other.
        lr: learning rate of the first step.
        schedule: how the rate goes on; cosine ends near 0.
    """

    name: Optimizer = "adam"
    lr: Annotated[float, Interval(gt=0)] = 1e-3  # AdaMerging's; not given in the paper
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        check(self, "optimizer")

    def lr_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What both stages can be told.

    Attributes:
        holdout: share of the unlabelled samples that no step of either stage sees. It is for
            choices and measurements without labels.
        seed: of every draw: equal seeds, equal results.
        micro_batch: samples a forward pass; null: a whole step's at once. Gradients of λ are
            summed, so this changes the memory that a step takes and nothing else but round-off.
        cuda_graph: whether a step is recorded once and replayed; CUDA only, not in mode streamed.
            λ is the same but for round-off. docs/kernels.md says what of it has run.
    """

    holdout: Share = HOLDOUT
    seed: int = 0
    micro_batch: Positive | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graph and self.micro_batch is not None:
            raise MdftError(
                "cuda_graph: records a step's rows at once, so micro_batch must be unset, got "
                f"{self.micro_batch}"
            )


@dataclasses.dataclass(frozen=True)
class ConstructConfig(StageConfig):
    """Stage 1: learn one λ for all tasks.

    Attributes:
        steps: updates of λ.
        batch: samples a task and step.
        draw: kept: draw from the samples that pass the filter; batch: draw from all, then mask.
            With "kept" no removed sample is ever encoded; "batch" is the paper's order.
        alpha: weight of the cross-entropy to the teachers.
        use_entropy: whether the meta-model's own entropy is minimised too.
        reweight: weight γ' of a kept sample; as_written is exp(H0 - H), normalized the same with
            mean 1, off 1.
        filter: whether unsure samples are removed.
        mu: a sample is unsure where its entropy H >= H0 = mu log(classes).
        entropy_of: whose entropy H is, meta's being each step's own. It needs draw: batch.
        optimizer: how λ is updated.
    """

    steps: Positive = 100
    batch: Batch = 16  # AdaMerging's; not given in the paper
    draw: Draw = "kept"
    alpha: Weight = 1.0  # not given in the paper
    use_entropy: bool = True
    reweight: Reweight = "as_written"
    filter: bool = True
    mu: Weight = 0.4  # not given in the paper; EATA's value
    entropy_of: EntropyOf = "teacher"
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        check(self, "construct")
        super().__post_init__()
        if self.alpha == 0 and not self.use_entropy:
            raise MdftError("construct: alpha 0 without entropy leaves no objective, got both off")
        if self.entropy_of == "meta" and self.micro_batch is not None:
            raise MdftError(
                "construct.entropy_of: 'meta' needs a step's rows at once, so micro_batch must be "
                f"unset, got {self.micro_batch}"
            )
        if self.entropy_of == "meta" and self.draw == "kept" and self.filter:
            raise MdftError(
                "construct.draw: must be 'batch' where the filter's entropy_of is 'meta', whose "
                "kept samples change with every step, got 'kept'"
            )


@dataclasses.dataclass(frozen=True)
class SpecializeConfig(StageConfig):
    """Stage 2: align the meta-model with one task's own model (equation 7).

    Attributes:
        steps: updates of λ; the end of the road is the task's own model, so few.
        batch: samples a step, fresh ones each.
        representation: what is aligned; normalized is the encoder's output at length 1.
        optimizer: how λ is updated; a rate of 1e-3 hardly moves it in 20 steps.
    """

    steps: Positive = 20
    batch: Batch = 64
    representation: Representation = "encoder"
    optimizer: OptimizerConfig = OptimizerConfig(lr=0.05)

    def __post_init__(self) -> None:
        check(self, "specialize")
        super().__post_init__()
