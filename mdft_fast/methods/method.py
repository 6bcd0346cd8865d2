# SPDX-License-Identifier: Apache-2.0
"""What a method is: a frozen dataclass that changes the vectors of one tensor at a time."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mdft_fast.arena import Slot
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.model import Batch, LinearLayer
from mdft_fast.options import Interval, Positive, Seed
from mdft_fast.pool import Pool

Watch = Callable[[int, int], None]
Scale = Annotated[float, Interval(gt=0)]
Need = Literal["survey", "depth", "layers", "inputs"]
NEEDS: dict[Need, str] = {  # in words
    "survey": "a pass ahead",
    "depth": "numbered blocks",
    "layers": "the backbone's linear layers",
    "inputs": "unlabelled inputs",
}
Density = Annotated[float, Interval(gt=0, le=1)]  # share of elements that a method keeps


class Site(NamedTuple):
    """Where a tensor stands in the model.

    Attributes:
        slot: its name, shape and place in the arena.
        depth: 0 for the first block and what lies before it, 1 for the last one and what lies
            behind it, even steps between; 0 everywhere where there are no numbered blocks.
        survey: what the method's pass ahead has found.
        layer: the linear layer in a numbered block whose weight this is; None: it is no such
            weight, or the method does not need layers.
    """

    slot: Slot
    depth: float
    survey: Any
    layer: LinearLayer | None = None


class Vectors(Protocol):
    """K vectors, streamed: each tensor is made when its turn comes, every time anew.

    Attributes:
        names: whose vectors these are, K.
        tensors: the tensors' names, in arena order.
        parameters: ``P``: number of elements of each, padding not counted.
    """

    names: tuple[str, ...]
    tensors: tuple[str, ...]
    parameters: int

    def __iter__(self) -> Iterator[Tensor]:
        """Yields float32 ``[K, *shape]`` for each tensor, in arena order."""
        ...


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """What turns a pool into a pool. Subclass one of those below.

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


class MatrixMerge(Merge):
    """A merge of matrices: the weights of linear layers in blocks. The rest gets the mean."""

    needs = ("layers",)

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """See :class:`Merge`."""
        if site.layer is None or deltas.numel() == 0:
            return self.merge_rest(deltas, site)
        merged = self.merge_matrices(site.layer.matrix(deltas), site)
        return site.layer.weights(merged, tuple(deltas.shape[1:]))

    @abc.abstractmethod
    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the one matrix ``[out, in]`` of K, ``[K, out, in]`` float32, both over 0."""

    def merge_rest(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns what becomes of all other tensors: the mean, summed in the pool's order."""
        return mean_of(deltas)


def mean_of(deltas: Tensor) -> Tensor:
    """Returns the mean over the K vectors of a tensor, summed in order in float64, as float32."""
    return (sum_of(deltas) / len(deltas)).float()


def sum_of(deltas: Tensor) -> Tensor:
    """Returns the sum over the K vectors of a tensor, in order, float64 ``[*shape]``."""
    total = torch.zeros(deltas.shape[1:], dtype=torch.float64, device=deltas.device)
    for row in deltas:
        total += row
    return total


def flat(deltas: Tensor) -> Tensor:
    """Returns deltas ``[K, *shape]`` as ``[K, elements]``, scalars and empty tensors too."""
    return deltas.reshape(len(deltas), deltas[0].numel())


def in_rows(deltas: Tensor) -> Tensor:
    """Returns deltas ``[K, *shape]`` as ``[K, rows, n]``; a tensor of one axis is one row."""
    return deltas.flatten(2) if deltas.dim() > 2 else flat(deltas)[:, None]


def per_vector(numbers: Tensor, deltas: Tensor) -> Tensor:
    """Returns numbers ``[K]`` in a shape that spreads over deltas ``[K, *shape]``."""
    return numbers.view(-1, *[1] * (deltas.dim() - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputMerge(Method):
    """A merge that looks at unlabelled inputs: it goes through the model, not tensor by tensor.

    Attributes:
        samples: unlabelled inputs a task, all where there are fewer.
        copies: varied copies of each input that are added, if the samples can be varied. Of use
            where there are few; the time rises with them.
        seed: which inputs, and how copies vary.
        batch: inputs a forward pass.
    """

    samples: Positive = 384
    copies: Annotated[int, Interval(ge=0)] = 0
    seed: Seed = 0
    batch: Positive = 128

    kind = "merge"
    needs = ("layers", "inputs")

    def memory(self, pool: Pool, backbone: nn.Module, example: Batch) -> int | None:
        """Forecasts the bytes that it takes beyond the pool, by shapes alone; None: not known.

        Args:
            pool: K vectors, one a task; may hold no data.
            backbone: the module that they belong to, on any device.
            example: what the encoder takes for one sample, on the meta device.
        """
        return None

    @abc.abstractmethod
    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        """Returns the one vector of each tensor.

        Args:
            pool: K vectors, one a task.
            backbone: the module that they belong to; its values are not used.
            inputs: in the order of the pool's vectors.
            watch: told how many of how many parts are done.

        Returns:
            Tensor name -> float32 ``[*shape]``, for every tensor of the pool's layout.
        """
