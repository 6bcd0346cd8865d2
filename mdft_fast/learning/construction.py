# SPDX-License-Identifier: Apache-2.0
"""Stage 1: construct the meta-model (equations 1 to 6)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.learning.config import ConstructConfig
from mdft_fast.learning.learner import Callback, RunResult, result_of
from mdft_fast.learning.loop import learn, prepare
from mdft_fast.learning.objectives import DebiasedEntropyObjective
from mdft_fast.learning.teachers import TaughtTask, UnlabelledTask
from mdft_fast.model import MetaModel


def construct(
    meta: MetaModel,
    tasks: Sequence[UnlabelledTask | TaughtTask],
    config: ConstructConfig,
    *,
    callbacks: Iterable[Callback] = (),
    resume: Mapping[str, Any] | None = None,
) -> RunResult:
    """Learns one λ for all tasks without labels, from where ``meta.coefficients`` stand.

    A step is one merge, one forward of the encoder over all tasks' samples, K small heads, one
    launch of the loss, one backward, one dot, one update of K x L numbers.

    Args:
        meta: the meta-model; its λ is learned in place.
        tasks: tasks of the pool; their labels, if any, are never read.
        config: see :class:`ConstructConfig`.
        callbacks: called after every step as ``callback(record, learner)``; ``learner.state()``
            is what ``resume`` takes.
        resume: a state of an earlier call with the same arguments: goes on bit for bit.

    Returns:
        The learned λ and its path. A task none of whose samples pass the filter adds nothing to
        the objective, and a warning says so.

    Raises:
        MdftError: if a task is not of the pool or named twice, no sample of any task passes the
            filter, λ does not stay finite, or the step cannot be recorded as the configuration
            wants.
    """
    started = time.perf_counter()
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise MdftError(f"construct: tasks must be one or more, each named once, got {names}")
    drawn, warnings = _drawn(prepare(meta, tasks, config), config)
    objective = DebiasedEntropyObjective(tuple(drawn), tuple(drawn.values()), config)
    learner = learn(meta, objective, config, "construct", callbacks, resume)
    return result_of(learner, time.perf_counter() - started, tuple(warnings))


def _drawn(
    taught: Sequence[TaughtTask], config: ConstructConfig
) -> tuple[dict[TaughtTask, Tensor], list[str]]:
    """Returns what tasks have samples to draw from, and which; and warnings about the others."""
    drawn = {}
    warnings = []
    for task in taught:
        only_kept = config.filter and config.draw == "kept"
        rows = task.kept(config.mu) if only_kept else task.learn
        if len(rows) > 0:
            drawn[task] = rows
            continue
        warnings.append(
            f"task {task.name}: none of {len(task.learn)} samples passes the filter "
            f"(H < {config.mu} log {task.classes}); it adds nothing to stage 1"
        )
    if not drawn:
        raise MdftError(
            f"construct: some sample must pass the filter (H < {config.mu} log C), got none of "
            f"{sum(len(task.learn) for task in taught)}; raise filter.mu or turn the filter off"
        )
    return drawn, warnings
