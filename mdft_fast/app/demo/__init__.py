# SPDX-License-Identifier: Apache-2.0
"""The embedded demo: a pool that is trained on the user's machine, without any download."""

from mdft_fast.app.demo.demo_pool import DemoSizes, default_folder, ensure_pool, is_finished
from mdft_fast.app.demo.demo_tasks import TASKS, split_images

__all__ = ["TASKS", "DemoSizes", "default_folder", "ensure_pool", "is_finished", "split_images"]
