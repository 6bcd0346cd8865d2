# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/ops/test_merge_codecs.py, run by the emulated CUDA kernels."""

from __future__ import annotations

import pytest

from tests.ops.test_merge_codecs import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("emulated_operators")
