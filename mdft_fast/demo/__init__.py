# SPDX-License-Identifier: Apache-2.0
"""The embedded demo: a pool that is trained on the user's machine, without any download."""

from mdft_fast.demo.build import DemoSizes, default_folder, ensure_pool, is_finished

__all__ = ["DemoSizes", "default_folder", "ensure_pool", "is_finished"]
