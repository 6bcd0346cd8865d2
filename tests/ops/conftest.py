# SPDX-License-Identifier: Apache-2.0
"""Operator tests run on one thread: their tensors are small, and waking a second one costs more.

Those about threads ask for two.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
