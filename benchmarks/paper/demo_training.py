# SPDX-License-Identifier: Apache-2.0
"""Writes the demo's labelled training images, which its pool does not hold.

    python benchmarks/paper/demo_training.py FOLDER

For examples/finetune_pool.py --train FOLDER. They are drawn again, the same as when the pool was
built: the pool's unlabelled images are the first of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))  # an installed mdft_fast wins

from mdft_fast.app.demo import TASKS, DemoSizes, split_images


def main(folder: Path) -> None:
    """Writes ``<task>.npz`` with x, y and class_names for each task."""
    sizes = DemoSizes()
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        x, y = split_images(task, "train", sizes.train, sizes.test)
        names = np.array(task.class_names)
        np.savez_compressed(folder / f"{task.name}.npz", x=x.numpy(), y=y.numpy(),
                            class_names=names)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
