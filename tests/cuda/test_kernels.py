# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/emulated/test_kernels.py on a GPU. (Those of tests/ops run there anyway.)"""

from __future__ import annotations

import pytest

from tests.emulated.test_kernels import *  # noqa: F403

pytestmark = pytest.mark.cuda
