# SPDX-License-Identifier: Apache-2.0
"""The forecast: what it says before, and what a process was seen to take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import bench_memory
from benchmarks.shapes import CLASSES, ENCODERS, Encoder
from mdft_fast import MdftError, Pool, plan
from mdft_fast.app.forecast import LiveBytes, Subject, explained, forecast
from mdft_fast.app.opening import build
from mdft_fast.app.running import run
from mdft_fast.model import build_backbone
from tests.app.conftest import Make, call

MODELS: dict[str, dict[str, Any]] = {
    "ViT-Tiny 64x64": ENCODERS["ViT-Tiny 64x64"].spec,
    "CNN": {"library": "timm", "name": "resnet18", "kwargs": {"num_classes": 0}},
    "CLIP tower": {
        "library": "open_clip",
        "name": "VisionTransformer",
        "kwargs": {
            "image_size": 64, "patch_size": 8, "width": 384, "layers": 6, "heads": 6,
            "mlp_ratio": 4.0, "output_dim": 128,
        },
    },
}  # fmt: skip
SAMPLES = 64


def test_live_bytes_follow_tensors_and_their_storages() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        assert (live.now, live.peak) == (4000, 4000)
        c = b + 1
        del a
        assert live.now == 8000  # b keeps a's storage
        del b, c
        assert (live.now, live.peak) == (0, 8000)
        torch.zeros(500).add_(1)
    assert (live.now, live.peak) == (0, 8000)


@pytest.fixture(scope="module", params=MODELS)
def pool(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A packed pool of random models."""
    pytest.importorskip(MODELS[request.param]["library"])
    patch = pytest.MonkeyPatch()
    patch.setitem(ENCODERS, request.param, Encoder(MODELS[request.param], size=64))
    folder = tmp_path_factory.mktemp("plan") / "pool"
    files = tmp_path_factory.mktemp("models")
    Pool.pack(folder, **bench_memory.write_models(request.param, files))
    yield request.param, folder
    patch.undo()


@pytest.mark.parametrize(
    ("mode", "checkpointing"), [("resident", False), ("layerwise", False), ("streamed", True)]
)
def test_the_forecast_is_near_what_a_process_takes(
    pool: tuple[str, Path], mode: str, checkpointing: bool
) -> None:
    name, folder = pool
    with torch.device("meta"):
        backbone = build_backbone(MODELS[name])
    subject = Subject(backbone, CLASSES["CLIP's eight"], (64, 64))
    wanted = next(
        row
        for row in forecast(subject, SAMPLES, mapped=("fp32",))
        if (row.mode, row.codec, row.checkpointing) == (mode, "fp32", checkpointing)
    )
    seen = bench_memory.watch(
        {
            "way": mode, "pool": str(folder), "samples": SAMPLES, "threads": 1,
            "checkpointing": checkpointing, "precision": "fp32",
            "library": MODELS[name]["library"],
        }
    )  # fmt: skip
    assert "failed" not in seen, seen
    off = abs(seen["anonymous_mb"] - wanted.peak / 1e6)
    # 200 MB are what a process takes beside tensors: freed blocks that malloc keeps (in "resident"
    # it may), oneDNN's copies of a layer, code that is imported late.
    assert off <= max(200, 0.1 * seen["anonymous_mb"]), (seen, wanted)
    if mode != "resident":
        assert off <= 100, (seen, wanted)


def test_lambda_by_row_and_its_optimizer_are_in_the_plan(make_recipe: Make) -> None:
    by_tensor, by_row = (plan(make_recipe(f"granularity={g}")) for g in ("tensor", "row"))
    recipe = make_recipe("granularity=row")
    numbers = build(recipe).meta_model().coefficients.numel()
    for one, other in zip(by_tensor.rows, by_row.rows, strict=True):
        # λ, two moments of Adam, start, last, the merged one; in a step at least its gradient.
        assert other.peak - one.peak > 0.9 * 6 * 4 * numbers
        assert other.peak - one.peak < 60 * 4 * numbers  # a gradient a block, at the worst


def test_rows_say_what_they_are_made_of(make_recipe: Make) -> None:
    planned = plan(make_recipe())
    assert len(planned.rows) == 2 * 3 * 5
    for row in planned.rows:
        assert row.peak == row.weights + row.rest + (0 if row.away else row.base + row.vectors)
    fp32 = {(r.mode, r.checkpointing): r for r in planned.rows if r.codec == "fp32"}
    assert fp32["resident", False].weights == fp32["resident", False].base
    assert fp32["layerwise", False].weights < fp32["resident", False].weights / 2
    assert fp32["layerwise", True].peak < fp32["layerwise", False].peak
    assert fp32["layerwise", False].moved > fp32["resident", False].moved
    by_codec = {r.codec: r.vectors for r in planned.rows}
    assert by_codec["bf16"] == by_codec["fp16"] == by_codec["fp32"] // 2
    assert by_codec["int8"] == by_codec["fp32"] // 4 + by_codec["fp32"] // 128
    assert by_codec["int4"] == by_codec["fp32"] // 8 + by_codec["fp32"] // 128


def test_a_caller_without_gradients_gets_the_same_plan(make_recipe: Make) -> None:
    expected = plan(make_recipe("memory.budget=4GB"))
    with torch.no_grad():
        assert plan(make_recipe("memory.budget=4GB")) == expected


def test_nothing_is_loaded(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(Pool, "from_checkpoints", no)
    monkeypatch.setattr(Pool, "open", no)
    plan(make_recipe())


def test_the_fastest_mode_that_fits_is_chosen(make_recipe: Make) -> None:
    free = plan(make_recipe())
    assert free.chosen.mode == "resident"
    assert free.fits
    assert not free.given
    peaks = {(r.mode, r.checkpointing): r.peak for r in free.rows if r.codec == "fp32"}
    between = (peaks["resident", False] + peaks["layerwise", False]) // 2
    tight = plan(make_recipe(f"memory.budget={between}"))
    assert (tight.chosen.mode, tight.fits, tight.given) == ("layerwise", True, True)
    nothing = plan(make_recipe("memory.budget=1000"))
    assert not nothing.fits
    assert "nothing fits; the least is:" in nothing.advice()
    short = plan(make_recipe(), every=False)
    assert (short.chosen, len(short.rows)) == (free.chosen, 1)
    named = plan(make_recipe("memory.mode=streamed"))
    assert named.chosen.mode == "streamed"
    fewer = plan(make_recipe("memory.budget=1000", "memory.micro_batch=1"))
    assert fewer.samples == 1
    assert fewer.chosen.peak < nothing.chosen.peak


def test_a_budget_that_nothing_fits_ends_a_run_before_anything_is_loaded(make_recipe: Make) -> None:
    made = make_recipe("memory.budget=1KB")
    with pytest.raises(MdftError, match=r"0 MB are in the budget\n.*the least is"):
        run(made)


def test_the_chosen_mode_runs_and_gives_the_same_result(make_recipe: Make) -> None:
    wanted = run(make_recipe("output=a")).result["coefficients"]
    for i, memory in enumerate(
        (
            ("memory.mode=layerwise", "memory.checkpointing=true"),
            ("memory.mode=streamed", "memory.codec=fp32"),
            ("memory.checkpointing=true",),
        )
    ):
        got = run(make_recipe(f"output=b{i}", *memory)).result["coefficients"]
        assert got == wanted


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_out_of_memory_is_answered_with_the_plan(make_recipe: Make, error: Exception) -> None:
    recipe = make_recipe("memory.budget=1000")
    with (
        pytest.raises(MdftError, match=r"out of memory: (.*\n)+.*memory.mode=\w+ memory.codec="),
        explained(recipe),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), explained(recipe):
        raise RuntimeError("another")


def test_a_backbone_that_needs_data_is_refused_in_words() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](x.mean((2, 3))) if float(x.sum()) > 0 else x

    with torch.device("meta"):
        subject = Subject(Looks(), (2, 3), (8, 8))
    with pytest.raises(MdftError, match="plan: the backbone must run on tensors without data"):
        list(forecast(subject, 4))


def test_the_command(make_recipe: Make, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    make_recipe().write(file)
    shown = call("plan", file)
    assert "-> " in shown.output
    assert shown.output.count("layerwise") == 2
    every = call("plan", file, "--all")
    assert every.output.count("layerwise") == 10
    tight = call("plan", file, "--set", "memory.budget=1KB", code=1)
    assert "nothing fits" in tight.output + (tight.stderr or "")


def test_a_cuda_graph_without_cuda_is_refused_before_a_folder_is_made(make_recipe: Make) -> None:
    recipe = make_recipe("memory.cuda_graph=true", "device=cpu")
    with pytest.raises(MdftError, match=r"memory.cuda_graph needs a CUDA device, got cpu"):
        run(recipe)
    assert not recipe.output.exists()


def test_a_missing_key_of_labels_is_found_before_anything_is_learned(make_recipe: Make) -> None:
    recipe = make_recipe("tasks[1].evaluate.y=labels")
    with pytest.raises(MdftError, match=r"key 'labels' is missing, got \["):
        run(recipe)
    assert not recipe.output.exists()
