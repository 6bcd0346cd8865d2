# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/ops/test_row_columns.py, run by the emulated CUDA kernels."""

from __future__ import annotations

import pytest

from tests.ops.test_row_columns import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("emulated_operators")

# Data are checked by the CPU's kernels alone; test_kernels.py says what these do instead.
del test_errors_of_data  # noqa: F821
