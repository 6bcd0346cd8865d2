# SPDX-License-Identifier: Apache-2.0
"""Whether what a task learns from and what it is tested on have images in common."""

from __future__ import annotations

import torch
from torch import Tensor

from mdft_fast.data.samples import Samples


def shared_images(adapt: Samples, test: Samples) -> tuple[list[int], list[int]] | None:
    """Finds the images that two sets share, by content: equal pixels after resizing.

    Float images are compared bit for bit: those that were rounded or normalised otherwise differ.

    Args:
        adapt: unlabelled samples.
        test: the test set's.

    Returns:
        The indices of ``adapt`` whose image is in ``test``, and of ``test`` whose is in ``adapt``;
        None where one set is uint8 and the other float, which says nothing about their images.
    """
    if adapt.x.dtype != test.x.dtype:
        return None
    mine, theirs = ([row.tobytes() for row in samples.digests()] for samples in (adapt, test))
    first, second = set(mine), set(theirs)
    return (
        [i for i, row in enumerate(mine) if row in second],
        [i for i, row in enumerate(theirs) if row in first],
    )


def unshared(samples: Samples, *tests: Samples) -> Tensor:
    """Returns the indices of the samples whose image is in none of the test sets, int64 ``[m]``."""
    kept = torch.ones(len(samples), dtype=torch.bool, device="cpu")
    for test in tests:
        shared = shared_images(samples, test)
        kept[shared[0] if shared else []] = False
    return kept.nonzero()[:, 0]
