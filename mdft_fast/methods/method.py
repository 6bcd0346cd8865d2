# SPDX-License-Identifier: Apache-2.0
"""What a method is: a frozen dataclass that changes the vectors of one tensor at a time."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from mdft_fast.arena import Slot

Need = Literal["survey", "depth", "inputs"]
NEEDS: dict[Need, str] = {  # in words
    "survey": "a pass ahead",
    "depth": "numbered blocks",
    "inputs": "unlabelled inputs",
}


class Site(NamedTuple):
    """Where a tensor stands in the model.

    Attributes:
        slot: its name, shape and place in the arena.
        depth: 0 for the first block and what lies before it, 1 for the last one and what lies
            behind it, even steps between; 0 everywhere where there are no numbered blocks.
        survey: what the method's pass ahead has found.
    """

    slot: Slot
    depth: float
    survey: Any


class Vectors(Protocol):
    """K vectors, streamed: each tensor is made when its turn comes, every time anew.

    Attributes:
        names: whose vectors these are, K.
        parameters: ``P``: number of elements of each, padding not counted.
    """

    names: tuple[str, ...]
    parameters: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yields float32 ``[K, *shape]`` for each tensor, in arena order."""
        ...


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """What turns a pool into a pool. Subclass :class:`Transform` or :class:`Merge`.

    The dataclass's fields are the recipe's keys; its docstring's first line says what it does.

    Attributes:
        name: in recipes, tables and results.
        kind: "transform" or "merge".
        source: the paper, or whose idea it is.
        needs: what it must know beside the vectors of one tensor.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["transform", "merge"]]
    source: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()

    def survey(self, vectors: Vectors) -> Any:
        """Looks at all tensors ahead, as often as it likes; the result is ``site.survey``."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Returns ``ties(density=0.2)``."""
        fields = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))
        return f"{self.name}({', '.join(fields)})"


class Transform(Method):
    """K vectors in, K out."""

    kind = "transform"

    @abc.abstractmethod
    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the K vectors of a tensor, changed.

        Args:
            deltas: float32 ``[K, *shape]``; may be the pool's own memory, so never written to.
            site: where the tensor stands.

        Returns:
            ``[K, *shape]``.
        """


class Merge(Method):
    """K vectors in, one out, whose λ is 1."""

    kind = "merge"

    @abc.abstractmethod
    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the one vector of a tensor; arguments as :meth:`Transform.transform` has them.

        Returns:
            ``[*shape]``.
        """
