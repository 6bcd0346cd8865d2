# SPDX-License-Identifier: Apache-2.0
"""A pool's vectors, tensor by tensor, as they stand after some methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.arena import Slot
from mdft_fast.errors import MdftError
from mdft_fast.methods.method import NEEDS, Merge, Method, Site, Transform
from mdft_fast.model import LinearLayer, block_of
from mdft_fast.pool import Pool


class Stream:
    """The vectors of a pool after some methods. Nothing is kept: a tensor costs all steps anew.

    Attributes are those of :class:`~mdft_fast.methods.method.Vectors`, and these.

    Attributes:
        pool: where the vectors come from.
        owners: whose vectors these are, for errors.
    """

    def __init__(
        self,
        pool: Pool,
        layers: Mapping[str, LinearLayer],
        steps: tuple[tuple[Method, Any], ...] = (),
    ) -> None:
        """Begins with the pool's own vectors.

        Args:
            pool: where they come from.
            layers: weight -> its linear layer, for those in blocks.
            steps: each method and what its survey found.
        """
        self.pool, self._steps, self.parameters = pool, steps, pool.parameters
        self.tensors = tuple(slot.name for slot in pool.layout.slots)
        self._layers = layers
        self.names, self.owners = pool.vector_names, pool.owners
        for method, _ in steps:
            if isinstance(method, Merge):
                self.names, self.owners = (method.name,), [f"merge {method.name!r}"]
        self._depths = depths(self.tensors)

    @property
    def changes(self) -> bool:
        """Whether any method has been at work."""
        return bool(self._steps)

    def then(self, method: Method) -> Stream:
        """Returns the vectors after one more method; makes its pass ahead if it needs one.

        Raises:
            MdftError: if it needs what the model has not, or inputs, which are seen by going
                through a whole model.
        """
        if "inputs" in method.needs:
            raise MdftError(f"{method.name}: needs {NEEDS['inputs']}, and a pool has none")
        if "depth" in method.needs and not any(self._depths.values()):
            raise MdftError(f"{method.name}: needs a model with numbered blocks, got none")
        survey = method.survey(self) if "survey" in method.needs else None
        return Stream(self.pool, self._layers, (*self._steps, (method, survey)))

    def __iter__(self) -> Iterator[Tensor]:
        """Yields float32 ``[K, *shape]`` for each tensor, in arena order."""
        for slot in self.pool.layout.slots:
            yield self.tensor(slot)

    def tensor(self, slot: Slot) -> Tensor:
        """Returns the vectors of one tensor, float32 ``[K, *shape]``; not to be written to."""
        stored = self.pool.vectors.of_slot(slot).decode()[:, : slot.numel]
        check_finite(stored, slot, self.pool.owners)
        deltas = stored.view(len(stored), *slot.shape)
        for method, survey in self._steps:
            layer = self._layers.get(slot.name)
            deltas = _changed(method, deltas, Site(slot, self._depths[slot.name], survey, layer))
        return deltas


def depths(names: Sequence[str]) -> dict[str, float]:
    """Returns tensor name -> depth in [0, 1]; see :class:`Site`."""
    block = block_of(list(names))
    numbered = [name for name in dict.fromkeys(block.values()) if name not in ("stem", "tail")]
    last = max(len(numbered) - 1, 1)
    depth = {"stem": 0.0, "tail": 1.0} | {name: i / last for i, name in enumerate(numbered)}
    return {name: depth[block[name]] for name in names}


@torch.no_grad()
def _changed(method: Method, deltas: Tensor, site: Site) -> Tensor:
    """Returns what a method makes of a tensor's vectors; a merge's one is ``[1, *shape]``."""
    if isinstance(method, Merge):
        made, shape = method.merge(deltas, site)[None], (1, *deltas.shape[1:])
    else:
        assert isinstance(method, Transform)
        made, shape = method.transform(deltas, site), tuple(deltas.shape)
    if tuple(made.shape) != shape:
        cut = slice(1 if isinstance(method, Merge) else 0, None)
        raise MdftError(
            f"{method.name}: must make {list(shape[cut])} of tensor {site.slot.name!r}, got "
            f"{list(made.shape[cut])}"
        )
    return made.float()


def check_finite(deltas: Tensor, slot: Slot, owners: Sequence[str]) -> None:
    """Refuses NaN and infinity: a method could hide them."""
    for row, owner in zip(deltas, owners, strict=True):
        if row.numel() and not (largest := float(row.abs().max())) < float("inf"):
            raise MdftError(
                f"{owner}: tensor {slot.name!r} has a task-vector element that must be finite, "
                f"got {largest:g}"
            )
