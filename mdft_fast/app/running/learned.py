# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run made."""

from __future__ import annotations

import dataclasses

from mdft_fast.learning import RunResult


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
    """What the stages made.

    Attributes:
        construct: stage 1's result.
        specialize: task -> stage 2's result, from stage 1's λ.
        control: task -> stage 2's result from task arithmetic, without stage 1.
        holdout: "start", "meta" -> teacher cross-entropy on held-out samples, mean over tasks.
    """

    construct: RunResult
    specialize: dict[str, RunResult]
    control: dict[str, RunResult]
    holdout: dict[str, float]
