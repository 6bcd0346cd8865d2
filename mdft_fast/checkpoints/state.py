# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, opened: names, tensors, and what is known about them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from mdft_fast.arena import digest
from mdft_fast.checkpoints.metadata import SourceFacts

StateSource = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """A checkpoint, opened.

    Attributes:
        label: what an error calls it: its path, or whose it is.
        tensors: name -> tensor; of a file, read only when asked for.
        format: what it is, in words.
        left_out: name -> why it is not in ``tensors``, for what the source holds besides.
        facts: what the source says about activation and preprocessing.
        formed: names of tensors that were computed here (base + B·A), in float32 at least. Their
            dtype is ours, not the source's.
        normalize: of a head: whether it reads features at length 1; None: it does not say.
        check: compares all elements with the checksums of the file, where its format has some;
            raises if they disagree. Whoever uses values, and not forms alone, calls it before.
        unreadable: name -> what it is, for tensors of a form that is not read, such as sparse.
        notes: what was chosen without being asked for, a sentence each.
        prefix: what stood before the names in the source, where they were fitted to a backbone's.
    """

    label: str
    tensors: Mapping[str, Tensor]
    format: str = "state dict"
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: SourceFacts = dataclasses.field(default_factory=SourceFacts)
    formed: frozenset[str] = frozenset()
    normalize: bool | None = None
    check: Callable[[], None] = lambda: None
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefix: str = ""

    def sha256(self) -> str:
        """Returns one digest of all tensors, in the order of their names; every one is read."""
        self.check()
        return digest(*(self.tensors[name] for name in sorted(self.tensors)))


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for; ``readers``: name -> what does."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> LazyTensors:
    """Returns the tensors under other names, as lazy as they were; ``names``: new -> old."""
    return LazyTensors({new: partial(tensors.__getitem__, old) for new, old in names.items()})
