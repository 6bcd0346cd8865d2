# SPDX-License-Identifier: Apache-2.0
"""Whether loading keeps up: images a second of decoding, of cached batches, and of an encoder."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.shapes import ENCODERS
from mdft_fast.data import FolderSource, Samples, load_samples
from mdft_fast.data import image_cache as cache
from mdft_fast.model import build_backbone

BATCH = 128  # images of a step of stage 1 in the default preset: 8 tasks of 16
FILE = (375, 500)  # height and width of a photograph
CELLS = (48, 64, 3)  # of the noise in it


def run(
    models: Sequence[str], device: torch.device, images: int, rounds: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each encoder: what loading gives, and what the encoder takes.

    Args:
        models: keys of ``shapes.ENCODERS``.
        device: the encoder's.
        images: number of files.
        rounds: turns of what is repeated; medians are reported.
        threads: of torch, and those that decode.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder, "photographs"), images)
        with (
            mock.patch.dict(os.environ, MDFT_CACHE=str(Path(folder, "cache"))),
            mock.patch.object(cache, "threads", return_value=threads),
        ):
            for model in models:
                yield _row(model, FolderSource(Path(folder, "photographs")), device, rounds)


def write_photographs(folder: Path, count: int) -> None:
    """Writes JPEG files of noise that is neither flat nor white."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        cells = rng.integers(0, 256, CELLS, dtype=np.uint8)
        image = Image.fromarray(cells).resize(FILE[::-1], Image.Resampling.BICUBIC)
        image.save(folder / f"{i:05}.jpg", quality=90)


def _row(model: str, source: FolderSource, device: torch.device, rounds: int) -> dict[str, Any]:
    size = ENCODERS[model].size
    preprocess = {"size": size, "mean": 0.5, "std": 0.5}
    decoding, samples = _timed(lambda: load_samples(source, preprocess))
    opening = statistics.median(_timed(_reopen(source, preprocess))[0] for _ in range(rounds))
    rng = torch.Generator().manual_seed(0)

    def batch() -> Any:
        indices = torch.randint(len(samples), (BATCH,), generator=rng)
        return _wait(samples.batch(indices, device))

    loading = statistics.median(_timed(batch)[0] for _ in range(3 * rounds))
    forward, step = _encoder(model, batch(), rounds)
    return {
        "op": "data",
        "case": f"{model}, {size} x {size} from {FILE[0]} x {FILE[1]} JPEG",
        "images": len(samples),
        "batch": BATCH,
        "threads": cache.threads(),
        "images_per_s": {
            "decoding": round(len(samples) / decoding, 1),
            "opening": round(len(samples) / opening, 1),
            "cached batches": round(BATCH / loading, 1),
            "encoder, forward": round(BATCH / forward, 1),
            "encoder, forward and backward": round(BATCH / step, 1),
        },
        "batches_over_forward": round(forward / loading, 2),
    }


def _reopen(source: FolderSource, preprocess: dict[str, Any]) -> Callable[[], Samples]:
    """Returns a call that opens a filled cache as a new process does: every image is compared."""

    def reopen() -> Samples:
        cache.forget()
        return load_samples(source, preprocess)

    return reopen


def _encoder(model: str, images: Any, rounds: int) -> tuple[float, float]:
    """Returns the seconds of a forward pass, and of one with its backward pass."""
    encoder = build_backbone(ENCODERS[model].spec).to(images.device)

    def forward() -> Any:
        return _wait(encoder(images))

    def step() -> Any:
        with torch.enable_grad():
            encoder(images).square().sum().backward()
        encoder.zero_grad()
        return _wait(images)

    forward()
    return tuple(  # type: ignore[return-value]
        statistics.median(_timed(call)[0] for _ in range(rounds)) for call in (forward, step)
    )


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def _wait(answer: Any) -> Any:
    if answer.device.type == "cuda":
        torch.cuda.synchronize()
    return answer


def table(row: dict[str, Any]) -> str:
    """Returns a row as lines of text."""
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    about = f"{row['images']} files, batches of {row['batch']}, {threads}"
    lines = [f"{row['op']}: {row['case']}  ({about})"]
    for name, rate in row["images_per_s"].items():
        lines.append(f"  {name:32} {rate:12,.0f} images/s")
    lines.append(f"  cached batches are {row['batches_over_forward']:.1f} x the forward pass")
    return "\n".join(lines)
