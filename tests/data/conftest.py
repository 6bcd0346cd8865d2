# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pool.conftest import real, real_pool  # noqa: F401 - fixtures

PREPROCESS = {"size": [4, 6], "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    """uint8 [7, 4, 6, 3]."""
    return np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)


@pytest.fixture
def npz(tmp_path: Path, images: Any) -> Path:
    """Images, labels, class names, and arrays with every mistake."""
    path = tmp_path / "data.npz"
    broken = images.astype(np.float32).transpose(0, 3, 1, 2) / 255
    broken[0, 0, 0, :2] = np.nan
    np.savez_compressed(
        path,
        allow_pickle=True,
        x=images,
        y=np.array([0, 1, 2, 0, 1, 2, 0]),
        y_pickled=np.array([{"label": 0}] * 7, dtype=object),
        x_pickled=np.array([None], dtype=object),
        empty=images[:0],
        small=images[:, :3],
        int64=images.astype(np.int64),
        flat=images.reshape(7, -1),
        nan=broken,
        channels=images[..., :2],
        words=np.array(["a", "b"]),
        class_names=np.array(["cat", "dog", "emu"]),
        y_high=np.array([0, 1, 2, 3, 4, 0, 0]),
        y_low=np.array([0, 0, 0, -1, 0, 0, 0]),
        y_short=np.array([0, 1]),
        y_float=np.zeros(7),
    )
    return path
