# SPDX-License-Identifier: Apache-2.0
"""One step of stage 1 in a process of its own, so that another process can watch its memory.

    python benchmarks/memory_step.py '{"way": "layerwise", "pool": FOLDER, ...}'

Says "ready" once everything is imported, waits for a line, takes the step, and prints JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.append(str(Path(__file__).parent.parent))
os.environ["MDFT_STRICT"] = "1"

from mdft_fast import MetaModel, Pool, debiased_entropy_loss
from mdft_fast.model import MODES, build_backbone, find_blocks, return_freed_memory
from mdft_fast.pool import Head

LR = 1e-3


def loss_of(features: Tensor, heads: list[Head], teachers: list[Tensor]) -> Tensor:
    """Stage 1's objective over rows of K tasks, one after another."""
    parts = features.tensor_split(len(heads))
    logits = [head(f) for head, f in zip(heads, parts, strict=True)]
    return debiased_entropy_loss(logits, teachers, filter=False, reweight="off").loss.sum()


def our_step(pool: Pool, options: dict[str, Any], loss: Callable[[Tensor], Tensor]) -> Any:
    """The step of a MetaModel; returns loss and gradient of λ."""
    same = {name: options[name] for name in ("precision", "checkpointing")}
    meta = MetaModel(on_meta(pool), pool, mode=options["way"], **same)
    optimizer = torch.optim.Adam([meta.coefficients], lr=LR)

    def step(images: Tensor) -> tuple[float, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        value = loss(meta.encode(images))
        value.backward()
        optimizer.step()
        return float(value), meta.coefficients.grad.clone()

    return step


def on_meta(pool: Pool) -> nn.Module:
    """The backbone without weights: the pool's replace them."""
    with torch.device("meta"):
        backbone = build_backbone(dict(pool.backbone_spec))
    for name, _ in list(backbone.named_buffers()):
        path, _, leaf = name.rpartition(".")
        backbone.get_submodule(path)._buffers[leaf] = pool.buffers[name].clone()
    return backbone


def checkpointed(backbone: nn.Module, pool: Pool) -> nn.Module:
    """Lets a plain module compute each block's activations again, as ours does."""
    for name in find_blocks(backbone, pool.layout, None):
        module = backbone.get_submodule(name)

        def run(*args: Any, _forward: Any = module.forward, **kwargs: Any) -> Any:
            return checkpoint(_forward, *args, use_reentrant=False, **kwargs)

        module.forward = run
    return backbone


def plain_step(pool: Pool, options: dict[str, Any], loss: Callable[[Tensor], Tensor]) -> Any:
    """Forward and backward of one plain model: no pool, no λ."""
    backbone = build_backbone(dict(pool.backbone_spec)).requires_grad_()
    if options["checkpointing"]:
        checkpointed(backbone, pool)
    parameters = list(backbone.parameters())

    def step(images: Tensor) -> tuple[float, None]:
        value = loss(backbone(images))
        torch.autograd.grad(value, parameters)
        return float(value), None

    return step


def peers_step(pool: Pool, options: dict[str, Any], loss: Callable[[Tensor], Tensor]) -> Any:
    """Task vectors in float32, one merge through autograd's sums, tensor by tensor."""
    backbone = on_meta(pool)
    if options["checkpointing"]:
        checkpointed(backbone, pool)
    base = [view.clone() for view in pool.layout.views(pool.base)]
    rows = [[v.clone() for v in pool.layout.views(row)] for row in pool.vectors.decode()]
    names = [slot.name for slot in pool.layout.slots]
    leaf = torch.full((pool.K, len(names)), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=LR)

    def step(images: Tensor) -> tuple[float, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        merged = {}
        for i, name in enumerate(names):
            total = base[i]
            for k in range(pool.K):
                total = total + leaf[k, i] * rows[k][i]
            merged[name] = total
        # As parameters of the module itself: a checkpoint's recomputation must find them too.
        for name, weight in merged.items():
            path, _, last = name.rpartition(".")
            backbone.get_submodule(path)._parameters[last] = weight
        value = loss(backbone(images))
        value.backward()
        optimizer.step()
        return float(value), leaf.grad.clone()

    return step


def data_bytes() -> int:
    """Returns what RLIMIT_DATA counts: private memory that could be written, touched or not."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(row for row in rows if row.startswith("VmData")).split()[1])


def warm_up(options: dict[str, Any]) -> None:
    """Brings in what a process has whatever step it takes: libraries, threads, their buffers."""
    importlib.import_module(options["library"])
    layer, x = nn.Linear(256, 256), torch.randn(256, 256, requires_grad=True)
    made = checkpoint(layer, x, use_reentrant=False)[None]
    attended = nn.functional.scaled_dot_product_attention(made, made, made)
    attended.sum().backward()
    nn.functional.conv2d(torch.randn(1, 3, 32, 32), torch.randn(8, 3, 4, 4))


def main(options: dict[str, Any]) -> None:
    """Takes the step that ``options`` describes."""
    torch.set_num_threads(options["threads"])
    if options["checkpointing"]:
        return_freed_memory()  # as MetaModel does then; for every way alike
    warm_up(options)
    print("ready", flush=True)
    sys.stdin.readline()
    pool = Pool.open(options["pool"])
    if options.get("limit"):  # beyond what is there, the mapped pool among it
        limit = data_bytes() + options["limit"]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.manual_seed(0)
    heads = list(pool.heads.values())
    teachers = [torch.randn(options["samples"] // len(heads), head.classes) for head in heads]
    make = {"plain": plain_step, "peers": peers_step}.get(options["way"], our_step)
    assert make is not our_step or options["way"] in MODES
    step = make(pool, options, lambda features: loss_of(features, heads, teachers))
    images = torch.randn(options["samples"], 3, *pool.preprocess["size"])
    seconds = []
    for _ in range(options.get("steps", 1)):
        started = time.perf_counter()
        value, gradient = step(images)
        seconds.append(time.perf_counter() - started)
    report = {"seconds": seconds[-1], "loss": value}
    if gradient is not None:
        report["gradient"] = [float(gradient.norm()), *gradient.flatten()[:4].tolist()]
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
