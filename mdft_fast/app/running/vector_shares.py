# SPDX-License-Identifier: Apache-2.0
"""How much of a merged model each vector is, by the length of what λ lets in of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.running.stages import Learned
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
    columns = torch.tensor([slot.column for slot in slots])
    places = torch.tensor([names.index(block[slot.name]) for slot in slots])

    def mixture(coefficients: Tensor) -> dict[str, Any]:
        squares = (coefficients.double()[:, columns] * norms).square()
        by_block = squares.new_zeros(len(squares), len(names)).index_add(1, places, squares)
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


@torch.no_grad()
def _norms(meta: MetaModel) -> Tensor:
    """Returns each vector's length in each tensor, float64 ``[K, tensors]``; a tensor at a time."""
    lengths = [
        torch.linalg.vector_norm(meta.vectors.of_slot(slot).decode(), dim=1, dtype=torch.float64)
        for slot in meta.layout.slots
    ]
    return torch.stack(lengths, 1).cpu()


def _shares(squares: Tensor) -> Tensor:
    """Returns lengths over their sum, ``[K, ...]``, from their squares; 0 where all are 0."""
    lengths = squares.sqrt()
    total = lengths.sum(0)
    return torch.where(total > 0, lengths / total, 0.0)
