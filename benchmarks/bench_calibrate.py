# SPDX-License-Identifier: Apache-2.0
"""What a calibration costs at CLIP's sizes: time by phase, share of matrix products, peak memory.

    python benchmarks/run.py calibrate --json benchmarks/results/calibrate_cpu.json

Weights, task vectors and inputs are random: costs depend on shapes alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench_pack import watched
from benchmarks.harness import origin
from mdft_fast import Head, Pool, TaskVectors, methods
from mdft_fast.arena import Layout, digest, rows_of
from mdft_fast.checkpoints import as_preprocess, example_input
from mdft_fast.files import write_json
from mdft_fast.methods import Calibrate, apply
from mdft_fast.model import build_backbone
from mdft_fast.pool import TaskInfo, take_inventory

SIZES = {"CLIP ViT-B/32": (768, 12, 32, 512), "CLIP ViT-L/14": (1024, 24, 14, 768)}
CLASSES = 10
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "_scaled_dot_product")
_SOLVES = ("linalg_cholesky", "cholesky_solve", "linalg_eigh")


@dataclasses.dataclass(frozen=True)
class Noise:
    """Inputs without an image."""

    count: int
    size: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Returns float32 ``[b, 3, size, size]``."""
        generator = torch.Generator().manual_seed(int(indices[0]))
        return torch.randn(len(indices), 3, self.size, self.size, generator=generator).to(device)


@dataclasses.dataclass(frozen=True)
class NoiseTask:
    """A task of such inputs."""

    name: str
    samples: Noise

    def load_samples(self, preprocess: Any) -> Noise:
        """Returns them."""
        return self.samples


def make_pool(model: str, tasks: int) -> tuple[torch.nn.Module, Pool]:
    """Returns a tower and a pool of random vectors in bfloat16."""
    width, layers, patch, output = SIZES[model]
    kwargs = {
        "image_size": 224, "patch_size": patch, "width": width, "layers": layers,
        "heads": width // 64, "mlp_ratio": 4.0, "output_dim": output,
    }  # fmt: skip
    torch.manual_seed(0)
    spec = {"library": "open_clip", "name": "VisionTransformer", "kwargs": kwargs}
    backbone = build_backbone(spec)
    inventory = take_inventory(backbone)
    layout = Layout.of(inventory.merged)
    state = dict(backbone.named_parameters())
    base = layout.pack({name: state[name].detach() for name in inventory.merged})
    codes = torch.empty(tasks, layout.elements, dtype=torch.bfloat16)
    for row in codes:
        row.copy_(torch.randn(layout.elements) * 1e-3)
    vectors = TaskVectors(codes, "bf16")
    names = [f"task{k}" for k in range(tasks)]
    pool = Pool(
        layout=layout, base=base, vectors=vectors,
        tasks=tuple(TaskInfo(name, tuple(map(str, range(CLASSES)))) for name in names),
        heads={name: Head(torch.randn(CLASSES, output), normalize=True) for name in names},
        buffers={}, left_out=inventory.left_out, ties=inventory.aliases, dtypes={},
        backbone_spec=spec, preprocess=as_preprocess({"size": 224, "mean": 0.5, "std": 0.5}),
        checksum="",
    )  # fmt: skip
    return backbone, pool.with_vectors(vectors, [digest(row.codes) for row in rows_of(vectors)])


class OpTimes(TorchDispatchMode):
    """Seconds in matrix products and in factorisations, and how many of the former's FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.solves = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Times an operator."""
        name = func._schema.name.removeprefix("aten::")
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - began
        if name.startswith(_PRODUCTS):
            self.products += seconds
        elif name.startswith(_SOLVES):
            self.solves += seconds
        return result


@contextlib.contextmanager
def timed(phases: dict[str, float]) -> Iterator[None]:
    """Adds up what each part of a calibration takes, for the length of a ``with``."""
    walk = methods.walk
    places: list[tuple[Any, str, str]] = [
        (walk.sensitivity.Sensitivities, "__init__", "sensitivities, pass ahead"),
        (walk.sensitivity.Sensitivities, "of_block", "sensitivities, in blocks"),
        (walk.block_pass.BlockPass, "__init__", "the tasks' own streams"),
        (walk.streams.LayerPass, "moments", "merged stream and its sums"),
        (walk.block_pass.BlockPass, "move_on", "streams behind the block"),
        (Calibrate, "_fitted", "all of a layer's turn"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, phase in places:
        setattr(owner, name, _timer(getattr(owner, name), phases, phase))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
        phases["solving"] = phases.pop("all of a layer's turn") - phases[places[3][2]]


def _timer(function: Callable[..., Any], phases: dict[str, float], phase: str) -> Any:
    @functools.wraps(function)
    def timer(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - began

    return timer


def measure(model: str, tasks: int, method: Calibrate) -> dict[str, Any]:
    """Calibrates once; returns a row of the JSON."""
    backbone, pool = make_pool(model, tasks)
    inputs = [NoiseTask(name, Noise(method.samples, 224)) for name in pool.names]
    phases: dict[str, float] = {}
    forecast = method.memory(pool, backbone, example_input(pool.preprocess))
    used = time.process_time()
    calibrate = functools.partial(apply, pool, [method], backbone=backbone, tasks=inputs)
    with timed(phases), OpTimes() as ops:
        seconds, peak = watched(calibrate)
    return {
        "model": model, "tasks": tasks, "method": dataclasses.asdict(method), "seconds": seconds,
        "cpu_seconds": time.process_time() - used, "phases": phases,
        "products_share": ops.products / seconds, "solves_share": ops.solves / seconds,
        "peak_bytes": peak, "forecast_bytes": forecast,
        "model_bytes": 4 * pool.parameters,
    }  # fmt: skip


def main(argv: list[str]) -> int:
    """Measures one calibration and adds its row to the JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.py calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SIZES), default="CLIP ViT-B/32")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--fisher", type=float, default=Calibrate.fisher)
    parser.add_argument("--no-keep", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv[1:])
    torch.set_num_threads(options.threads)
    method = Calibrate(
        samples=options.samples,
        batch=options.batch,
        fisher=options.fisher,
        keep=not options.no_keep,
    )
    row = measure(options.model, options.tasks, method)
    print(json.dumps(row, indent=1))
    if options.json:
        old = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
        words = f"python benchmarks/run.py calibrate --model '{options.model}'"
        write_json(options.json, {**origin(words, torch.device("cpu")), "rows": [*old, row]})
    return 0
