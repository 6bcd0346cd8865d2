# SPDX-License-Identifier: Apache-2.0
"""The forecast of a calibration's memory, against what a process takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdft_fast.methods.walk import Walk, forecast_walk
from tests.methods.made_backbones import BACKBONES, make_backbone_case

_MEASURED = """
import pathlib, sys, torch
import mdft_fast.methods.calibrate as calibrate
from mdft_fast.methods import Calibrate, apply
from mdft_fast.methods.walk import forecast_walk
from mdft_fast.model import build_backbone
from tests.methods.made_backbones import make_case, seeded

def images(n, seed):
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))

def kilobytes(name):
    rows = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(row for row in rows if row.startswith(name)).split()[1])

torch.set_num_threads(1)
keep, fisher = sys.argv[1] == "True", float(sys.argv[2])
kwargs = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
spec = {"library": "timm", "name": "test_vit", "kwargs": {**kwargs, "num_classes": 0}}
small = make_case(seeded(lambda: build_backbone(spec)), K=3, n=2, draw=images)
apply(small.pool, [Calibrate(fisher=fisher)], backbone=small.backbone, tasks=small.tasks)
case = make_case(seeded(lambda: build_backbone(spec)), K=3, n=160, draw=images)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = kilobytes("VmRSS")
method = Calibrate(keep=keep, fisher=fisher, batch=16, samples=160)
apply(case.pool, [method], backbone=case.backbone, tasks=case.tasks)
forecast = forecast_walk(
    case.pool, case.backbone, images(1, 0), samples=160, batch=16, keep=keep,
    measured=160 if fisher else 0,
)
print(kilobytes("VmHWM") - before, forecast.total, forecast)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("keep", "fisher"), [(True, 0.0), (True, 0.9), (False, 0.9)])
def test_a_process_takes_what_was_forecast(keep: bool, fisher: float) -> None:
    pytest.importorskip("timm")
    # Freed memory goes back at once, so that the peak is of what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    root = Path(__file__).parents[2]
    shown = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(keep), str(fisher)],
        capture_output=True, text=True, cwd=root, check=True,
        env={**environment, "PYTHONPATH": str(root)},
    ).stdout  # fmt: skip
    measured, forecast = map(int, shown.split()[:2])
    assert 0.8 * measured <= forecast <= 1.25 * measured, shown


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_without_data_are_those_that_a_walk_finds(name: str) -> None:
    case = make_backbone_case(name)
    walk = Walk(case.pool, case.backbone, case.inputs)
    walk.install({name: walk.base(name) for name in walk.names})
    (batch,) = case.inputs[0].some(1).batches(1)
    stream = max(call.stream.numel() for call in _calls(walk, batch))
    memory = forecast_walk(
        case.pool, case.backbone, batch, samples=1000, batch=1, keep=False, measured=0
    )
    assert memory.streams == 2 * 2 * 1000 * 4 * stream
    grown = forecast_walk(
        case.pool, case.backbone, batch, samples=1000, batch=1, keep=True, measured=50
    )
    assert grown.total > memory.total


@torch.no_grad()
def _calls(walk: Walk, batch: object) -> list:
    calls = [walk.enter(batch)]
    for structure in walk.structures():
        calls.append(calls[-1].following(walk.run(structure.block, calls[-1], [])[1]))
    return calls[:-1]
