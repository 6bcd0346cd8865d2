# SPDX-License-Identifier: Apache-2.0
"""Figure 2: how alike the layers of the meta-model and of the individual models are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.markdown import mean, number, table
from benchmarks.paper.analysis import OUTPUT, LayerReader, linear_cka
from benchmarks.paper.form import Item, Results
from benchmarks.paper.study import Study
from benchmarks.pictures import BLUE, GRAY, ORANGE, VERMILION, bare, heading, new_figure
from mdft_fast import MetaModel
from mdft_fast.data import Samples, load_samples
from mdft_fast.model import find_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 2: linear CKA with the individual models, layer by layer"
BATCH = 64  # images of a minibatch
MODELS = {  # compared with the individual model: words, color
    "pretrained": ("pre-trained", GRAY),
    "start": ("task arithmetic", ORANGE),
    "meta": ("MDFT, stage 1", BLUE),
    "specialized": ("MDFT, stage 2", VERMILION),
}


def plain(meta: MetaModel, at: float | Tensor) -> nn.Module:
    """Returns a module with λ's merged weights."""
    with meta.using(at):
        return meta.materialize().eval()


def compare(
    meta: MetaModel, at: float | Tensor, task: str, samples: Samples, blocks: Sequence[str]
) -> Tensor:
    """Returns the CKA of all layers at λ with all layers of a task's own model, ``[A, A]``."""
    device, size = meta.coefficients.device, min(BATCH, len(samples))
    rows = [r for r in torch.arange(len(samples)).split(size) if len(r) == size]
    example = samples.batch(rows[0][:3], device)
    one, individual = (
        LayerReader(plain(meta, lam), blocks, example) for lam in (at, meta.individual(task))
    )
    images = (samples.batch(r, device) for r in rows)
    return linear_cka((one(x), individual(x)) for x in images)


def measure(study: Study, options: argparse.Namespace) -> Results:
    """Compares on the unlabelled images, first seed: no label is read."""
    meta, seed = study.meta(), study.seeds[0]
    blocks = find_blocks(plain(meta, 0.0), meta.layout, study.recipe.memory.blocks)
    special = study.second(seed)
    tasks = {}
    for task in study.built.unlabelled:
        samples = load_samples(task.adapt, study.built.pool.preprocess)
        at = {"pretrained": 0.0, "start": 0.3, "meta": study.first(seed)[-1]}
        if task.name in special:
            at["specialized"] = special[task.name][-1]
        ckas = {model: compare(meta, lam, task.name, samples, blocks) for model, lam in at.items()}
        tasks[task.name] = {
            "images": len(samples),
            "diagonal": {m: _finite(c.diagonal().tolist()) for m, c in ckas.items()},
            "pairs": [_finite(r) for r in ckas["meta"].tolist()] if options.all_pairs else None,
        }
    return {"layers": [*blocks, OUTPUT], "batch": BATCH, "tasks": tasks}


def _finite(values: list[float]) -> list[float | None]:
    return [value if value == value else None for value in values]  # NaN: it did not vary


def markdown(results: Results) -> str:
    """Shows the mean over tasks by layer, and each task's first, middle and last layer."""
    layers, tasks = results["layers"], results["tasks"]
    models = [m for m in MODELS if all(m in t["diagonal"] for t in tasks.values())]
    rows = []
    for i, layer in enumerate(layers):
        cells = []
        for model in models:
            values = [t["diagonal"][model][i] for t in tasks.values()]
            known = [v for v in values if v is not None]
            cells.append(number(mean(known) if known else None, 3))
        rows.append([layer, *cells])
    by_task = [
        [name, *(number(t["diagonal"]["meta"][i], 3) for i in range(len(layers)))]
        for name, t in tasks.items()
    ]
    return "\n\n".join([
        table(["layer", *(MODELS[m][0] for m in models)], rows),
        "Linear CKA with the task's individual model, mean over tasks; features are all tokens of "
        f"a block's output, minibatches of {results['batch']} unlabelled images, unbiased "
        "estimator of Nguyen et al. 2021. 1: equal up to rotation and scale.",
        table(["meta-model, by task", *layers], by_task),
        "The paper shows the figure without its numbers, so none stand here.",
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Draws CKA by layer, a panel a task; with all pairs a heat map each."""
    tasks, layers = results["tasks"], results["layers"]
    pairs = any(t["pairs"] for t in tasks.values())
    across = min(4, len(tasks))
    down = -(-len(tasks) // across)
    figure = new_figure(max(6.6, 2.4 * across), 1 + (2.3 if pairs else 1.8) * down)
    heading(figure, "Linear CKA, layers of the meta-model and of the individual models")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for empty in grid[len(tasks) :]:
        empty.remove()
    short = [name.rsplit(".", 1)[-1] for name in layers]
    for axes, (name, task) in zip(grid, tasks.items(), strict=False):
        axes.set_title(name)
        if pairs:
            heat = torch.tensor([[float("nan") if v is None else v for v in r]
                                 for r in task["pairs"]])  # fmt: skip
            image = axes.imshow(heat.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
            bare(axes)
            axes.set_yticks(range(len(layers)), short)
        else:
            for model, values in task["diagonal"].items():
                label, color = MODELS[model]
                y = [float("nan") if v is None else v for v in values]
                axes.plot(range(len(layers)), y, "o-", ms=3, color=color, label=label)
            axes.set_ylim(min(0, *axes.get_ylim()), 1.04)
        axes.set_xticks(range(len(layers)), short, rotation=90 if len(layers) > 8 else 0)
    if pairs:
        figure.supxlabel("layer of the individual model", fontsize=9)
        figure.supylabel("layer of the meta-model", fontsize=9)
        figure.colorbar(image, ax=list(grid[: len(tasks)]), shrink=0.6, label="CKA")
    else:
        figure.supylabel("CKA", fontsize=9)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


ITEM = Item(TITLE, measure, markdown, draw)
