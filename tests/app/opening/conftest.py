# SPDX-License-Identifier: Apache-2.0
"""The tiny CLIP of the heads' tests, and a cache folder of the test's own."""

from tests.heads.conftest import cache, clip, clip_name, weights  # noqa: F401 - fixtures
