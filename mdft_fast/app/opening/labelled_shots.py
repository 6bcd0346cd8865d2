# SPDX-License-Identifier: Apache-2.0
"""Labelled images that make a head: no test image may be among them, and results say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.opening.sample_sources import OnDisk
from mdft_fast.data import NpzSource, Samples, load_labelled, shared_images
from mdft_fast.errors import MdftError
from mdft_fast.pool import label_note


def load_shots(
    task: str,
    shots: OnDisk,
    preprocess: Mapping[str, Any],
    classes: int,
    tests: Mapping[str, Samples],
    *,
    drop: bool,
) -> tuple[Samples, Tensor, str]:
    """Reads the labelled images of a task's head, and refuses test images among them.

    λ is shared and learned through every head, so the test images of no task may be there.

    Args:
        task: whose head it is.
        shots: where the images are.
        preprocess: the pool's.
        classes: ``C`` of the task.
        tests: task -> its test images.
        drop: whether test images are left out, not refused.

    Returns:
        The images, their labels int64 ``[n]``, and what a reader of results must know of them.

    Raises:
        MdftError: if a test image is there, and ``drop`` is not set.
    """
    samples, labels = load_labelled(shots, preprocess, classes, role="train")
    common = {other: shared_images(samples, images) for other, images in tests.items()}
    shared = {i for both in common.values() if both for i in both[0]}
    words = (
        "class means of labelled images that the recipe gives for that purpose. λ depends on them "
        "through this head alone."
    )
    if shared:
        if not drop:
            where = shots.path if isinstance(shots, NpzSource) else shots.listing("train").name
            whose = [other for other, both in common.items() if both and both[0]]
            raise MdftError(
                f"{where}: images whose labels make the head must not be test images, got "
                f"{len(shared):,} that are, pixel for pixel (of {', '.join(whose)}); take them "
                "out, or say `duplicates: drop`"
            )
        words += (
            f" {len(shared):,} of {len(samples):,} were test images, pixel for pixel, and were "
            "dropped."
        )
        rest = torch.tensor(
            [i for i in range(len(samples)) if i not in shared], dtype=torch.long, device="cpu"
        )
        samples, labels = samples.take(rest), labels[rest]
    untold = [other for other, both in common.items() if both is None]
    if untold:
        words += (
            f" Whether test images of {', '.join(untold)} are among them could not be told, as one "
            "of the two sets holds floats."
        )
    return samples, labels, label_note(task, words)
