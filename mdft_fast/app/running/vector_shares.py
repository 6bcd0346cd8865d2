# SPDX-License-Identifier: Apache-2.0
"""How much of a merged model each vector is, by the length of what λ lets in of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.running.stages import Learned
from mdft_fast.arena import Slot
from mdft_fast.model import MetaModel, block_of


def vector_shares(meta: MetaModel, learned: Learned) -> dict[str, Any]:
    """Returns the shares of the meta-model and the specialized ones, as JSON values.

    A vector's share of a block, and of the whole model, is ‖λ_v τ_v‖ over the sum of all vectors'
    such lengths. See :class:`~mdft_fast.app.report.schema.Shares`.
    """
    slots = meta.layout.slots
    block = block_of([slot.name for slot in slots])
    names = list(dict.fromkeys(block.values()))
    norms = _norms(meta)
    columns = torch.cat([_columns(slot) for slot in slots])
    counts = torch.tensor([len(_columns(slot)) for slot in slots], device="cpu")
    block_of_column = torch.tensor([names.index(block[slot.name]) for slot in slots], device="cpu")
    block_of_column = block_of_column.repeat_interleave(counts)

    def mixture(coefficients: Tensor) -> dict[str, Any]:
        squares = (coefficients.double()[:, columns] * norms).square()
        by_block = squares.new_zeros(len(squares), len(names)).index_add(
            1, block_of_column, squares
        )
        return {
            "whole": _shares(squares.sum(1)).tolist(),
            "blocks": _shares(by_block).T.tolist(),
        }

    return {
        "blocks": names,
        "construct": mixture(learned.construct.coefficients),
        "specialize": {
            name: mixture(result.coefficients) for name, result in learned.specialize.items()
        },
    }


def _columns(slot: Slot) -> Tensor:
    """Returns the columns of λ that a tensor reads: one, or one a row of it."""
    return slot.column + torch.arange(slot.rows, device="cpu")


@torch.no_grad()
def _norms(meta: MetaModel) -> Tensor:
    """Returns each vector's length in each tensor, or row of it, that has a λ of its own.

    It is float64 ``[K, parts]``. A tensor is decoded at a time.
    """
    lengths = []
    for slot in meta.layout.slots:
        rows = len(_columns(slot))
        part = meta.vectors.of_slot(slot).decode()[:, : slot.numel]
        part = part.reshape(len(part), rows, slot.numel // rows)
        lengths.append(torch.linalg.vector_norm(part, dim=2, dtype=torch.float64))
    return torch.cat(lengths, 1).cpu()


def _shares(squares: Tensor) -> Tensor:
    """Returns lengths over their sum, ``[K, ...]``, from their squares; 0 where all are 0."""
    lengths = squares.sqrt()
    total = lengths.sum(0)
    return torch.where(total > 0, lengths / total, 0.0)
