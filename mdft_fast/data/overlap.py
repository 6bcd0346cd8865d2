# SPDX-License-Identifier: Apache-2.0
"""Whether what a task adapts to and what it is tested on have images in common."""

from __future__ import annotations

from mdft_fast.data.samples import Samples


def shared_images(adapt: Samples, test: Samples) -> tuple[int, int]:
    """Counts the images that two sets share, by content: equal pixels after resizing.

    Args:
        adapt: unlabelled samples.
        test: the test set's.

    Returns:
        How many images of ``adapt`` are in ``test``, and how many of ``test`` in ``adapt``.
    """
    mine, theirs = ([row.tobytes() for row in samples.digests()] for samples in (adapt, test))
    first, second = set(mine), set(theirs)
    return sum(row in second for row in mine), sum(row in first for row in theirs)
