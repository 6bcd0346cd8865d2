# SPDX-License-Identifier: Apache-2.0
"""Where λ starts: at a merge, where the pool holds one, else at task arithmetic."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from mdft_fast.pool import Pool

# λ of the baseline "task arithmetic" (Ilharco et al. 2023, arXiv:2212.04089), as AdaMerging
# (arXiv:2310.02575) takes it for many tasks; the paper's stage 1 starts there.
TASK_ARITHMETIC = 0.3


@runtime_checkable
class StartLike(Protocol):
    """Gives a pool a start; :class:`mdft_fast.Start` does."""

    def pool_of(self, pool: Pool, backbone: nn.Module) -> Pool:
        """Returns the pool with a merge as vector 0."""
        ...


def on_tasks(pool: Pool, value: float) -> list[float]:
    """Returns a number a vector: ``value`` at the tasks' own, 0 at a merge's."""
    return [value if name in pool.names else 0.0 for name in pool.vector_names]


def initial_coefficients(pool: Pool) -> float | list[float]:
    """Returns the λ that a pool starts from: 1 at a merge's vector and 0 at the tasks' own.

    Without a merge it is task arithmetic.
    """
    if all(name in pool.names for name in pool.vector_names):
        return TASK_ARITHMETIC
    return [0.0 if name in pool.names else 1.0 for name in pool.vector_names]
