# SPDX-License-Identifier: Apache-2.0
"""What an accuracy loses, in points and as a share of what it was."""

from __future__ import annotations

from typing import NamedTuple

from mdft_fast.errors import MdftError


class Drop(NamedTuple):
    """A loss of accuracy; negative where there is a gain.

    Attributes:
        points: before less after, in [-1, 1].
        relative: points as a share of before; None where before is 0.
    """

    points: float
    relative: float | None


def accuracy_drop(before: float, after: float) -> Drop:
    """Returns what lies between two accuracies in [0, 1]."""
    for name, value in (("before", before), ("after", after)):
        if not 0 <= value <= 1:
            raise MdftError(f"accuracy_drop: {name} must be in [0, 1], got {value}")
    points = before - after
    return Drop(points, points / before if before > 0 else None)
