# SPDX-License-Identifier: Apache-2.0
"""A task as a user states it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mdft_fast.data.images.sources import LabelledSource, Source
from mdft_fast.data.samples import Samples, load_samples
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, check_classes, check_task_name


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Task:
    """One task: its classes, its frozen head, its unlabelled samples.

    Attributes:
        name: letters, digits, '_', '-', '+' and '.'; unique within a pool.
        class_names: one name a class, ``C`` in the order of the head's rows.
        head: the classifier; the weight ``[C, D]`` of a plain linear one is made a :class:`Head`.
        adapt: unlabelled samples, loaded or not, see :func:`~mdft_fast.data.load_samples`.
        evaluate: labelled samples, read by evaluation alone, or None.
    """

    name: str
    class_names: tuple[str, ...]
    head: Head
    adapt: Source | Samples
    evaluate: LabelledSource | None

    def __init__(
        self,
        name: str,
        class_names: Iterable[str],
        head: Head | Tensor,
        adapt: Source | Samples,
        evaluate: LabelledSource | None = None,
    ) -> None:
        """States a task; nothing is read yet.

        The arguments are the attributes: see the class.

        Raises:
            MdftError: if the name, a class name or the head's number of rows is wrong.
        """
        check_task_name(name)
        if isinstance(class_names, str):
            raise MdftError(
                f"task {name!r}: class_names must be one name a class, got {class_names!r}"
            )
        names = tuple(str(class_name) for class_name in class_names)
        head = head if isinstance(head, Head) else Head(head)
        stated = {"name": name, "class_names": names, "head": head}
        for key, value in (stated | {"adapt": adapt, "evaluate": evaluate}).items():
            object.__setattr__(self, key, value)
        check_classes(self, head)

    def load_samples(self, preprocess: Mapping[str, Any]) -> Samples:
        """Reads the unlabelled samples, see :func:`~mdft_fast.data.load_samples`."""
        return load_samples(self.adapt, preprocess)
