# SPDX-License-Identifier: Apache-2.0
"""What wudi and aswudi solve: how much one matrix disturbs the tasks along their own rows.

A task's vector lies in the span of its inputs. So θ disturbs task k by (θ − τ_k) τ_kᵀ, and

    min_θ  Σ_k w_k ‖(θ − τ_k) τ_kᵀ‖²,   w_k = 1 / ‖τ_k‖²

has the normal equations θ C = D with C = Σ w_k τ_kᵀ τ_k and D = Σ w_k τ_k τ_kᵀ τ_k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.methods.singular_triples import Triples, thin_triples


class NormalEquations(NamedTuple):
    """The K matrices of a layer, summed. All float64.

    Attributes:
        gram: ``C [in, in]``.
        target: ``D [out, in]``.
        total: ``S = Σ τ_k [out, in]``.
    """

    gram: Tensor
    target: Tensor
    total: Tensor


class ThinEquations(NamedTuple):
    """The same through the P singular directions of tasks of small rank. All float64.

    Attributes:
        rows: ``X [P, in]``: √w_k S_k V_kᵀ of τ_k = U_k S_k V_kᵀ, one task below the other, so
            that C = Xᵀ X.
        target: ``[out, P]``: D = target X.
        total: ``[out, P]``: S = total X.
    """

    rows: Tensor
    target: Tensor
    total: Tensor


def equations_of(deltas: Tensor) -> NormalEquations | ThinEquations:
    """Returns the normal equations of a layer, thin where the tasks' ranks are small.

    Args:
        deltas: ``[K, out, in]``; vectors that are zero count for nothing.
    """
    tasks: list[Triples] = []
    for delta in deltas:
        thin = thin_triples(delta)
        if thin is None or sum(len(t.values) for t in (*tasks, thin)) > delta.shape[1]:
            return _dense(deltas)
        if len(thin.values):
            tasks.append(thin)
    return _thin(tasks, deltas)


def _dense(deltas: Tensor) -> NormalEquations:
    _, outputs, inputs = deltas.shape
    gram = deltas.new_zeros(inputs, inputs, dtype=torch.float64)
    target = deltas.new_zeros(outputs, inputs, dtype=torch.float64)
    total = torch.zeros_like(target)
    for delta in deltas:
        matrix = delta.double()
        total += matrix
        if (square := float(matrix.square().sum())) > 0:
            product = matrix.mT @ matrix
            gram += product / square
            wide = outputs < inputs  # the cheaper order
            target += ((matrix @ matrix.mT) @ matrix if wide else matrix @ product) / square
    return NormalEquations(gram, target, total)


def _thin(tasks: list[Triples], deltas: Tensor) -> ThinEquations:
    _, outputs, inputs = deltas.shape
    none = deltas.new_zeros(outputs, 0, dtype=torch.float64)
    rows, target, total = [none.new_zeros(0, inputs)], [none], [none]
    for left, values, right in tasks:
        norm = values.norm()
        rows.append((right * (values / norm)).mT)
        target.append(left * (values.square() / norm))
        total.append(left * norm)
    return ThinEquations(torch.cat(rows), torch.cat(target, 1), torch.cat(total, 1))
