# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/ops/test_merge.py, run by the emulated CUDA kernels."""

from __future__ import annotations

import pytest

from tests.ops.test_merge import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("emulated_operators")

# Data are checked by the CPU's kernels alone; test_kernels.py says what these do instead.
del test_a_column_outside_of_lambda_is_an_error  # noqa: F821
