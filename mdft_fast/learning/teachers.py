# SPDX-License-Identifier: Apache-2.0
"""What the stages know of each task: its unlabelled samples, and what its own model says of them.

A teacher never changes, so it is asked once: the pool's own model is the meta-model at λ = e_k.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.errors import MdftError
from mdft_fast.model import Batch, MetaModel, Samples, UnlabelledTask, batches_of, split
from mdft_fast.pool import Head

_BATCH = 128  # samples a teacher sees at once; no gradient is kept
# A task's name and some of its samples -> what its own model's encoder gives, float32 [n, D].
Ask = Callable[[str, Samples], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class TaughtTask:
    """A task as the stages see it. No labels.

    Attributes:
        name: the task's.
        samples: its n unlabelled samples.
        learn: int64 indices to learn from.
        holdout: int64 indices kept apart.
        features: float32 ``[n, D]``, the teacher's encoder output, on the meta-model's device.
        logits: float32 ``[n, C]``, the teacher's.
        entropy: float32 ``[n]``, H of the teacher's softmax, in nats.
        head: the task's classifier.
        pool: checksum of the pool whose model was asked.
    """

    name: str
    samples: Samples
    learn: Tensor
    holdout: Tensor
    features: Tensor
    logits: Tensor
    entropy: Tensor
    head: Head
    pool: str

    @property
    def classes(self) -> int:
        """``C``."""
        return self.logits.shape[1]

    def kept(self, mu: float) -> Tensor:
        """Returns the learning indices that pass the filter: H < mu log C (equation 4)."""
        entropy = self.entropy.cpu()[self.learn]
        kept, _ = reference.filter_and_weigh(
            entropy, self.classes, mu=mu, filter=True, reweight="off"
        )
        return self.learn[kept]

    def batch(self, indices: Tensor) -> Batch:
        """Returns samples as the encoder wants them, on the teacher's device."""
        return self.samples.batch(indices, self.logits.device)


@torch.no_grad()
def teach(
    meta: MetaModel,
    tasks: Sequence[UnlabelledTask | TaughtTask],
    *,
    holdout: float,
    seed: int,
    batch: int | None = None,
    ask: Ask | None = None,
) -> list[TaughtTask]:
    """Asks each task's own model about its unlabelled samples, once.

    Args:
        meta: the meta-model; its λ is set to each e_k in turn and restored.
        tasks: tasks of the pool; what is taught already is passed through.
        holdout: share of the samples kept apart.
        seed: of the split.
        batch: samples encoded at once; None: 128.
        ask: knows the answers of :func:`own_features`; None: that function.

    Raises:
        MdftError: if a task is not of this pool, or was taught by another one's model.
    """
    if ask is None:
        ask = functools.partial(own_features, meta, batch=batch)
    for task in tasks:
        if isinstance(task, TaughtTask) and task.pool != meta.pool.checksum:
            raise MdftError(
                f"task {task.name!r}: its teacher must be of the pool {meta.pool.checksum[:12]}, "
                f"got one of {task.pool[:12]}"
            )
    return [
        task if isinstance(task, TaughtTask) else _teach(meta, task, holdout, seed, ask)
        for task in tasks
    ]


@torch.no_grad()
def own_features(meta: MetaModel, task: str, samples: Samples, batch: int | None = None) -> Tensor:
    """Returns what the encoder of a task's own model gives for samples, float32 ``[n, D]``.

    Args:
        meta: the meta-model; its λ is set to e_k and restored.
        task: whose model.
        samples: any.
        batch: samples encoded at once; None: 128.
    """
    device = meta.coefficients.device
    with meta.using(meta.individual(task)):
        return torch.cat([meta.encode(x) for x in batches_of(samples, batch or _BATCH, device)])


def _teach(
    meta: MetaModel, task: UnlabelledTask, holdout: float, seed: int, ask: Ask
) -> TaughtTask:
    if task.name not in meta.pool.names:
        raise MdftError(f"task: must be one of {list(meta.pool.names)}, got {task.name!r}")
    samples = task.load_samples(meta.pool.preprocess)
    learn, held_out = split(len(samples), holdout, seed, task.name)
    head = meta.heads[task.name]
    features = ask(task.name, samples)
    logits = head(features)
    if not logits.isfinite().all():
        count = int((~logits.isfinite()).any(1).sum())
        raise MdftError(
            f"task {task.name!r}: its own model's logits must be finite, got NaN or infinity for "
            f"{count} of {len(logits)} samples"
        )
    entropy = reference.entropy(logits)
    return TaughtTask(
        task.name, samples, learn, held_out, features, logits, entropy, head, meta.pool.checksum
    )


@torch.no_grad()
def holdout_cross_entropy(
    meta: MetaModel, tasks: Sequence[TaughtTask], *, batch: int | None = None
) -> dict[str, float]:
    """Measures, without labels, how far the meta-model is from the teachers.

    Returns:
        task -> mean of CE(p, q) over its held-out samples, in nats; no filter, no weights, so
        that runs with different objectives compare. Tasks without held-out samples are left out.
    """
    measured = {}
    for task in tasks:
        if len(task.holdout) == 0:
            continue
        rows = []
        for indices in task.holdout.split(batch or _BATCH):
            q = task.head(meta.encode(task.batch(indices)))
            p = task.logits[indices.to(q.device)].softmax(-1)
            rows.append(reference.cross_entropy(p, q))
        measured[task.name] = float(torch.cat(rows).mean())
    return measured
