# SPDX-License-Identifier: Apache-2.0
"""What shows, without labels, that learning λ has failed: said, as a run ends all the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mdft_fast.app.running.stages import Learned
from mdft_fast.learning import RunResult

_FAR = 10.0  # λ that makes a useful model lies between about -1 and 2


def failures(learned: Learned) -> list[str]:
    """Returns a sentence for each sign of a failed learning."""
    found = list(_of_stage("Stage 1", "construct", learned.construct))
    for name, result in learned.specialize.items():
        found += _of_stage(f"Stage 2 of {name!r}", "specialize", result)
    before, after = (learned.holdout.get(key, 0.0) for key in ("start", "meta"))
    if not math.isfinite(after) or after > before:
        found.append(
            f"Stage 1: the teachers' cross-entropy on held-out samples rose from {before:.4g} to "
            f"{after:.4g}: the start is the better model. Lower construct.optimizer.lr, or look at "
            "the teachers."
        )
    return found


def _of_stage(words: str, key: str, result: RunResult) -> Iterator[str]:
    first, last = result.path[0], result.path[-1]
    largest = float(last.abs().max())
    if largest > _FAR:
        yield (
            f"{words}: λ diverged, its largest value is {largest:.3g}, where 0 to 1 is usual. "
            f"Lower {key}.optimizer.lr."
        )
    if bool((first == last).all()):
        yield (
            f"{words}: λ did not move, as every gradient was zero. Do the teachers tell classes "
            f"apart, and is {key}.optimizer.lr above zero?"
        )
