# SPDX-License-Identifier: Apache-2.0
"""What a learning that failed shows: it ends without an error, and its λ is of no use."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Ten times as far as any task's own model, whose λ is 1: no step of a sound learning ends there.
_FAR = 10.0


def doubts(stage: str, path: Tensor, steps: int) -> list[str]:
    """Returns what is wrong with a path of λ, one sentence each; nothing where it looks sound.

    Args:
        stage: what learned it.
        path: λ at the start, maybe on the way, and at the end, ``[n, K, L]``.
        steps: how many updates there were.
    """
    start, end = path[0], path[-1]
    most, largest = float(end.abs().max()), float(start.abs().max())
    if steps and (start == end).all():
        return [
            f"{stage}: λ did not move in {steps} steps: every gradient was zero; does the "
            f"encoder's output depend on its weights?"
        ]
    if most > _FAR * max(1.0, largest):
        return [
            f"{stage}: λ diverged, up to {most:.3g} from at most {largest:.3g} at the start; lower "
            f"the learning rate"
        ]
    return []


def doubts_of_holdout(start: Mapping[str, float], end: Mapping[str, float]) -> list[str]:
    """Returns whether the meta-model is farther from the teachers than where it started.

    Args:
        start: task -> cross-entropy to its teacher on held-out samples before stage 1.
        end: the same after it.
    """
    if not start or sum(end.values()) <= sum(start.values()):  # the mean is what both compare
        return []
    worst = max(start, key=lambda name: end[name] - start[name])
    return [
        f"construct: on held-out samples the meta-model is farther from the teachers than at the "
        f"start: {sum(start.values()) / len(start):.3f} to {sum(end.values()) / len(end):.3f} "
        f"nats, most of all {worst} ({start[worst]:.3f} to {end[worst]:.3f}); lower the learning "
        f"rate or take fewer steps"
    ]
