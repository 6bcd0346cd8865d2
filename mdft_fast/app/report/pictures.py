# SPDX-License-Identifier: Apache-2.0
"""All pictures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdft_fast.app.report import accuracy_pictures, coefficient_pictures, path_pictures
from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.style import RC, save

FOLDER = "pictures"


def write_pictures(folder: Path, result: Result, metrics: Sequence[Metric]) -> dict[str, str]:
    """Draws what there is to draw.

    Args:
        folder: the run folder; the pictures go into its ``pictures/``.
        result: of the run.
        metrics: of the run; may be empty.

    Returns:
        Picture's name -> its path, relative to ``folder``. A picture with nothing to show is
        absent, and an older one of that name is removed.
    """
    import matplotlib as mpl

    (folder / FOLDER).mkdir(exist_ok=True)
    written = {}
    with mpl.rc_context(RC):
        figures = {
            "accuracy": accuracy_pictures.accuracy(result),
            "gains": accuracy_pictures.gains(result),
            "coefficients": coefficient_pictures.coefficients(result),
            "mixture": coefficient_pictures.mixture(result),
            "losses": path_pictures.losses(metrics, result),
            "accuracy_path": path_pictures.accuracy_path(result),
            "distance_path": path_pictures.distance_path(result),
            "phases": path_pictures.phases(result),
        }
        for name, figure in figures.items():
            path = folder / FOLDER / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            save(figure, path)
            written[name] = f"{FOLDER}/{name}.png"
    return written
