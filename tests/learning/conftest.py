# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()
