# SPDX-License-Identifier: Apache-2.0
"""What models say of samples, asked once: the cache has the answers of earlier runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.opening import Built, images_at_once
from mdft_fast.app.running.provenance import code_digest, environment
from mdft_fast.arena import digest
from mdft_fast.checkpoints import cached_tensors
from mdft_fast.data import Samples
from mdft_fast.evaluation import TestSet, evaluate
from mdft_fast.heads import head_digest
from mdft_fast.learning import TaughtTask, own_features
from mdft_fast.model import MetaModel

_FORMAT = 1  # of what is kept


class Answers:
    """Asks a meta-model, unless the same model was asked about the same samples before.

    An answer's key holds all that its bits depend on: pool, λ, backbone, precision, samples, batch,
    versions, this package's code, and machine. A pool that was not verified has no answers.

    Args:
        built: the recipe, opened.
    """

    def __init__(self, built: Built) -> None:
        self._batch = images_at_once(built.recipe)
        self._tensors = cached_tensors if built.verified else _made
        self._about = {
            "format": _FORMAT,
            "backbone": dict(built.pool.backbone_spec),
            "preprocess": dict(built.pool.preprocess),
            "precision": built.recipe.precision,
            "batch": self._batch,
            "environment": environment(built.device),
            "code": code_digest(),
        }

    def features(self, meta: MetaModel, task: str, samples: Samples) -> Tensor:
        """Returns the encoder's output of a task's own model, float32 ``[n, D]``."""
        key = {**self._about, "pool": meta.pool.checksum, "own": task, "samples": _named(samples)}

        def ask() -> dict[str, Tensor]:
            return {"features": own_features(meta, task, samples, self._batch).cpu()}

        return self._tensors("answers", key, ask)["features"].to(meta.coefficients.device)

    def classes(self, meta: MetaModel, test: TestSet) -> Tensor:
        """Returns the class of each test sample at the present λ, int64 ``[n]``."""
        key = {
            **self._about,
            "pool": meta.pool.checksum,
            "granularity": meta.granularity,
            "coefficients": digest(meta.coefficients),
            "head": head_digest(test.task.head),
            "samples": _named(test.samples),
        }

        def ask() -> dict[str, Tensor]:
            return {"classes": evaluate(meta, [test], batch=self._batch).predicted[test.task.name]}

        return self._tensors("answers", key, ask)["classes"]

    def own_classes(self, meta: MetaModel, test: TestSet, taught: TaughtTask) -> Tensor:
        """Returns what a task's own model says of its test samples, int64 ``[n]``.

        What it was asked about as a teacher, it is not asked again.
        """
        said = dict(zip(map(bytes, taught.samples.digests()), taught.logits.argmax(-1).tolist(),
                        strict=True))  # fmt: skip
        known = [said.get(bytes(row)) for row in test.samples.digests()]
        at: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
        rest = torch.tensor([i for i, one in enumerate(known) if one is None], **at)
        classes = torch.tensor([-1 if one is None else one for one in known], **at)
        if len(rest):
            with meta.using(meta.individual(test.task.name)):
                classes[rest] = self.classes(
                    meta, test if len(rest) == len(known) else test.take(rest)
                )
        return classes


def _made(
    kind: str, ingredients: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Makes tensors, as :func:`cached_tensors` does where nothing is cached."""
    return make()


def _named(samples: Samples) -> dict[str, Any]:
    return {
        "count": len(samples),
        "sha256": hashlib.sha256(samples.digests().tobytes()).hexdigest(),
    }
