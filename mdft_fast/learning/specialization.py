# SPDX-License-Identifier: Apache-2.0
"""Stage 2: specialize the meta-model to one task (equation 7)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from mdft_fast.learning.config import SpecializeConfig
from mdft_fast.learning.learner import Callback, RunResult, result_of
from mdft_fast.learning.loop import learn, prepare
from mdft_fast.learning.objectives import AlignmentObjective
from mdft_fast.learning.teachers import TaughtTask, UnlabelledTask
from mdft_fast.model import MetaModel


def specialize(
    meta: MetaModel,
    task: UnlabelledTask | TaughtTask,
    config: SpecializeConfig,
    *,
    callbacks: Iterable[Callback] = (),
    resume: Mapping[str, Any] | None = None,
) -> RunResult:
    """Moves λ until the encoder's output on a task's samples is near the task's own model's.

    Starts from where ``meta.coefficients`` stand (stage 1's λ, say) and changes them in place.
    The optimum is known (λ = 1 at the task, else 0, where the loss is 0): 20 steps stop early.

    Args:
        meta: the meta-model.
        task: a task of the pool; its labels, if any, are never read.
        config: see :class:`SpecializeConfig`.
        callbacks: called after every step as ``callback(record, learner)``.
        resume: a state of an earlier call with the same arguments: goes on bit for bit.

    Returns:
        The learned λ and its path.

    Raises:
        MdftError: if the task is not of the pool, λ does not stay finite, or the step cannot be
            recorded as the configuration wants.
    """
    started = time.perf_counter()
    (taught,) = prepare(meta, [task], config)
    objective = AlignmentObjective([taught], [taught.learn], config.representation)
    learner = learn(meta, objective, config, "specialize", callbacks, resume, task=task.name)
    return result_of(learner, time.perf_counter() - started)
