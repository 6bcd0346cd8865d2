# SPDX-License-Identifier: Apache-2.0
"""What a pool knows of its tasks, and how tasks, heads and backbone must agree."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import Batch, StateSource, arguments_of
from mdft_fast.errors import MdftError, nearest
from mdft_fast.pool.head import Head

TASK_NAME_FORM = "letters, digits, '_', '-', '+' or '.', the first a letter or digit"


class TaskLike(Protocol):
    """What a pool reads of a task; ``mdft_fast.data.Task`` has it."""

    @property
    def name(self) -> str:
        """Unique name."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""

    @property
    def head(self) -> Head | None:
        """The classifier; None: the pool has none for the task, and cannot be saved."""


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """A task as the pool knows it.

    Attributes:
        name: unique within the pool.
        class_names: one name a class, in the order of the head's rows.
        round_off: largest |base + τ − θ| over the model's elements, in float32 before the codec.
            0 means that base + τ is the checkpoint bit for bit.
    """

    name: str
    class_names: tuple[str, ...]
    round_off: float = 0.0

    @property
    def classes(self) -> int:
        """``C``: number of classes."""
        return len(self.class_names)


def is_task_name(name: object) -> bool:
    """Returns whether ``name`` can be a task's: text that is safe as a file's and a folder's."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name))


def check_task_name(name: object) -> None:
    """Refuses what cannot be a task's name; see :func:`is_task_name`."""
    if not is_task_name(name):
        raise MdftError(f"task {name!r}: a name must be {TASK_NAME_FORM}")


def check_tasks(tasks: Sequence[TaskLike]) -> None:
    """Checks names, class names and heads against each other."""
    check_names([task.name for task in tasks])
    headed = [(task, task.head) for task in tasks if task.head is not None]
    for task, head in headed:
        _check_head(task, head, *headed[0])


def check_names(names: Sequence[str]) -> None:
    """Checks that there are names, that they differ, and that each can be a file's name."""
    if not names:
        raise MdftError("pool: tasks must name at least one task, got none")
    for i, name in enumerate(names):
        check_task_name(name)
        if name.lower() in [other.lower() for other in names[:i]]:
            raise MdftError(f"pool: task names must differ, got {name!r} twice in {list(names)}")


def check_classes(task: TaskLike | TaskInfo, head: Head) -> None:
    """Checks that a head has a row for each class name."""
    if head.classes != len(task.class_names):
        raise MdftError(
            f"task {task.name!r}: head must have one row for each of {len(task.class_names)} "
            f"class names, got weight {list(head.weight.shape)}"
        )


def _check_head(task: TaskLike, head: Head, first: TaskLike, known: Head) -> None:
    check_classes(task, head)
    if head.features != known.features:
        raise MdftError(
            f"task {task.name!r}: head must read {known.features} features as that of "
            f"task {first.name!r}, got weight {list(head.weight.shape)}"
        )
    for key, tensor in head.tensors.items():
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise MdftError(
                f"task {task.name!r}: head {key!r} must be finite, got {count} of "
                f"{tensor.numel()} elements NaN or infinite"
            )


def align(
    checkpoints: Mapping[str, StateSource] | Sequence[StateSource], tasks: Sequence[TaskLike]
) -> list[StateSource]:
    """Returns the checkpoints in the order of the tasks."""
    names = [task.name for task in tasks]
    if isinstance(checkpoints, (str, bytes)):
        raise MdftError(f"pool: checkpoints must be one for each task, got {checkpoints!r}")
    if not isinstance(checkpoints, Mapping):
        if len(checkpoints) != len(names):
            raise MdftError(
                f"pool: checkpoints must be one for each of {len(names)} tasks {names}, got "
                f"{len(checkpoints)}"
            )
        return list(checkpoints)
    for key in checkpoints:
        if key not in names:
            raise MdftError(f"pool: checkpoint of unknown task {key!r}{nearest(str(key), names)}")
    for name in names:
        if name not in checkpoints:
            raise MdftError(
                f"pool: the checkpoint of task {name!r} is missing, got {sorted(checkpoints)}"
            )
    return [checkpoints[name] for name in names]


def check_features(backbone: nn.Module, example: Batch, heads: Mapping[str, Head]) -> None:
    """Checks that the heads read as many features as the backbone gives, where that is known."""
    features = features_of(backbone, example)
    for name, head in heads.items():
        if features is not None and features != head.features:
            raise MdftError(
                f"task {name!r}: head must read the backbone's {features} features, got weight "
                f"{list(head.weight.shape)}"
            )


def features_of(backbone: nn.Module, example: Batch) -> int | None:
    """Returns ``D``, the number of features that a backbone gives.

    The forward runs on the meta device: shapes only, no arithmetic, nothing of the module's
    touched. None: the backbone cannot run there, or its output is not [B, D].

    Args:
        backbone: the encoder.
        example: a batch on the meta device, see :func:`~mdft_fast.checkpoints.example_input`.
    """
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    args, kwargs = arguments_of(example)
    try:
        with torch.no_grad():
            features = torch.func.functional_call(backbone, on_meta, args, kwargs)
    except Exception:  # whatever a user's forward raises without data is no fault of the pool
        return None
    known = isinstance(features, Tensor) and features.dim() == 2
    return int(features.shape[1]) if known else None
