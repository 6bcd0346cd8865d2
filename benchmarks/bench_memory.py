# SPDX-License-Identifier: Apache-2.0
"""What a step of stage 1 takes in memory, by mode and codec, watched from another process.

The peak is of anonymous memory (RssAnon) above the bare process: pages of a mapped pool stand
apart, since the system can take them back at any time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import status_bytes
from benchmarks.shapes import CLASSES, ENCODERS
from mdft_fast.app.forecast import Subject, forecast
from mdft_fast.arena import CODECS
from mdft_fast.checkpoints import Entry, write_tensors
from mdft_fast.model import MODES, build_backbone
from mdft_fast.pool import Head, Pool, take_inventory

STEP = Path(__file__).parent / "memory_step.py"
K = 8
MODELS = ("ViT-Tiny 64x64", "CLIP ViT-B/32", "CLIP ViT-L/14")  # of ENCODERS


class Named:
    """A task without data."""

    def __init__(self, name: str, classes: int, features: int) -> None:
        generator = torch.Generator().manual_seed(classes)
        self.name, self.class_names = name, tuple(str(c) for c in range(classes))
        weight = torch.randn(classes, features, generator=generator)
        self.head = Head(20 * torch.nn.functional.normalize(weight), None, True)


def write_models(model: str, folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Writes a random base and K models around it, tensor by tensor: never two models in memory.

    Returns:
        The arguments of :meth:`Pool.pack` but for its folder.
    """
    spec, size, _ = ENCODERS[model]
    torch.manual_seed(0)
    backbone = build_backbone(spec)
    merged = take_inventory(backbone).merged
    state = {name: value.detach() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, size, size)).shape[-1]
    files = [folder / f"{k}.safetensors" for k in range(K + 1)]
    for k, file in enumerate(files):  # 0 is the base
        write_tensors(file, [
            Entry(name, dtype, tuple(value.shape), _made(name, value, merged, k, dtype))
            for name, value in state.items()
        ])  # fmt: skip
    return {
        "base": files[0],
        "checkpoints": files[1:],
        "tasks": [Named(f"task{k}", c, features) for k, c in enumerate(CLASSES["CLIP's eight"])],
        "backbone": backbone,
        "backbone_spec": spec,
        "preprocess": {"size": size, "mean": 0.5, "std": 0.5},
    }


def _made(
    name: str, value: Tensor, merged: Mapping[str, Any], k: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    if k and name in merged:
        generator = torch.Generator().manual_seed(1000 * k + len(name))
        noise = torch.randn(value.shape, generator=generator)
        value = value + 0.02 * value.std(correction=0) * noise + 1e-3 * (value.std() == 0)
    yield value.to(dtype)


def watch(options: Mapping[str, Any]) -> dict[str, Any]:
    """Takes one step in a process of its own and watches its memory, some 500 times a second."""
    process = subprocess.Popen(
        [sys.executable, str(STEP), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(process.stderr.read()[-2000:])
    bare = resident(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    anonymous = mapped = 0
    while process.poll() is None:
        now = resident(process.pid)
        if now is not None and bare is not None:
            anonymous = max(anonymous, now[0] - bare[0])
            mapped = max(mapped, now[1] - bare[1])
        time.sleep(0.002)
    out, errors = process.stdout.read(), process.stderr.read()
    peaks = {"anonymous_mb": anonymous / 1e6, "mapped_mb": mapped / 1e6}
    if process.returncode != 0:
        return peaks | {"failed": errors.strip().splitlines()[-1][:300] if errors else "killed"}
    return peaks | json.loads(out)


def resident(pid: int) -> tuple[int, int] | None:
    """Returns a process's anonymous and file-backed resident bytes."""
    anonymous, mapped = (status_bytes(key, f"/proc/{pid}/status") for key in ("RssAnon", "RssFile"))
    return None if anonymous is None or mapped is None else (anonymous, mapped)


def run(
    models: Sequence[str],
    codecs: Sequence[str],
    *,
    samples: int = K,
    checkpointing: Sequence[bool] = (True,),
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields a row for each way to take a step: the floor, the peers' way, ours.

    Args:
        models: of :data:`MODELS`.
        codecs: of the task vectors.
        samples: images of the step.
        checkpointing: whether activations of blocks are computed again, for all alike.
        keep: folder for the pools; None: a temporary one.
    """
    folder = keep or Path(tempfile.mkdtemp(prefix="mdft-memory-"))
    try:
        for model in models:
            pools = _pools(folder, model, codecs)
            for again in checkpointing:
                yield from _rows(model, pools, samples, again)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _pools(folder: Path, model: str, codecs: Sequence[str]) -> dict[str, Path]:
    name = model.replace("/", "-").replace(" ", "-")
    pools = {codec: folder / f"{name}-{codec}" for codec in ("fp32", *codecs)}
    folder.mkdir(parents=True, exist_ok=True)
    if not pools["fp32"].exists():
        print(f"making {K} models of {model}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as models:
            Pool.pack(pools["fp32"], **write_models(model, Path(models)))
    for codec, path in pools.items():
        if not path.exists():
            print(f"packing them in {codec}", flush=True)
            Pool.open(pools["fp32"]).save(path, codec)
    return pools


def _rows(
    model: str, pools: Mapping[str, Path], samples: int, checkpointing: bool
) -> Iterator[dict[str, Any]]:
    with torch.device("meta"):
        backbone = build_backbone(ENCODERS[model].spec)
    side = ENCODERS[model].size
    subject = Subject(backbone, CLASSES["CLIP's eight"], (side, side))
    predicted = {
        (row.mode, row.codec, row.checkpointing): row
        for row in forecast(subject, samples, mapped=CODECS)
    }
    options = {
        "samples": samples, "threads": torch.get_num_threads(), "checkpointing": checkpointing,
        "precision": "fp32", "library": ENCODERS[model].spec["library"],
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    ways = [("plain", "fp32"), ("peers", "fp32")]
    ways += [(mode, codec) for mode in MODES for codec in CODECS if codec in pools]
    for way, codec in ways:
        row = {"model": model, "way": way, "codec": codec, "samples": samples,
               "checkpointing": checkpointing}  # fmt: skip
        row |= watch({**options, "way": way, "pool": str(pools[codec])})
        if (way, codec, checkpointing) in predicted:
            row["predicted_mb"] = predicted[way, codec, checkpointing].peak / 1e6
        rows.append(row)
        yield row
    ours = [row for row in rows if row["way"] in MODES and "failed" not in row]
    least = min(ours, key=lambda row: row["anonymous_mb"])
    limit = int(1.25e6 * least["anonymous_mb"]) + (64 << 20)  # and room for threads' own heaps
    for way, codec in ((least["way"], least["codec"]), ("plain", "fp32")):
        row = {"model": model, "way": way, "codec": codec, "samples": samples,
               "checkpointing": checkpointing, "limit_mb": limit / 1e6}  # fmt: skip
        yield row | watch({**options, "way": way, "pool": str(pools[codec]), "limit": limit})


def table(row: Mapping[str, Any]) -> str:
    """Returns one line."""
    limit = f"limit {row['limit_mb']:,.0f} MB" if "limit_mb" in row else ""
    predicted = f"plan {row['predicted_mb']:8,.0f}" if "predicted_mb" in row else limit
    ended = row.get("failed") or f"{row['seconds']:7.2f} s"
    return (
        f"{row['model']:16} {row['way']:10} {row['codec']:5} anonymous "
        f"{row['anonymous_mb']:8,.0f} MB  mapped {row['mapped_mb']:8,.0f} MB"
        f"  {predicted:14} {ended}"
    )
