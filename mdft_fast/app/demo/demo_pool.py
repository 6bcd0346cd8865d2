# SPDX-License-Identifier: Apache-2.0
"""Builds the demo's pool once, into the user's cache folder, and finds it again afterwards.

The pool is frozen: everything here was chosen by the accuracies of the base, of the individual
models and of task arithmetic alone, never by a run of learned merging.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

import mdft_fast.app.demo.pool_files as files
import mdft_fast.app.demo.training as train
from mdft_fast.app.demo.demo_tasks import TASKS, DemoTask, draw_plain, split_images
from mdft_fast.app.demo.glyphs import SIZE
from mdft_fast.cache import cache_folder
from mdft_fast.errors import MdftError, need
from mdft_fast.files import expanded, filled_once
from mdft_fast.model import TASK_ARITHMETIC, in_float32

VERSION = 1  # raise it with every change of what is built: the folder's name and stamp hold it
_MODULES = ("open_clip", "sklearn", "matplotlib")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DemoSizes:
    """How large the demo is. The defaults are the published pool; tests shrink them."""

    width: int = 128
    layers: int = 4
    mixture: int = 50_000  # images the base is trained on
    base_steps: int = 400
    base_batch: int = 128
    train: int = 3000  # images a task; digits has 1,797 - test
    test: int = 400
    unlabelled: int = 480  # of the training images, handed out without labels
    steps: int = 160
    batch: int = 64
    learning_rate: float = 6e-4
    tasks: tuple[str, ...] = field(default=tuple(task.name for task in TASKS))

    def __post_init__(self) -> None:
        names = {task.name for task in TASKS}
        if not self.tasks or not names.issuperset(self.tasks):
            raise MdftError(f"demo: tasks must be among {sorted(names)}, got {list(self.tasks)}")
        if not 0 < self.unlabelled <= min(self.train, 1797 - self.test):
            raise MdftError(f"demo: unlabelled must be a part of train, got {self.unlabelled}")
        name, most = max(((t.name, len(t.class_names)) for t in TASKS), key=lambda pair: pair[1])
        if self.train < most:
            raise MdftError(
                f"demo: train must hold every class of {name}, {most}, got {self.train} images"
            )

    @property
    def tower(self) -> dict[str, Any]:
        """The keyword arguments of ``open_clip.transformer.VisionTransformer``."""
        shape = {"image_size": SIZE, "patch_size": 8, "width": self.width, "layers": self.layers}
        return shape | {"heads": self.width // 32, "mlp_ratio": 4.0, "output_dim": self.width}


def default_folder() -> Path:
    """Returns where the demo lies: below ``$MDFT_CACHE``, else the user's cache folder."""
    return cache_folder() / f"demo-v{VERSION}"


def stamp(sizes: DemoSizes) -> dict[str, Any]:
    """Returns what tells one builder's pool from another's, as JSON reads it back."""
    content: dict[str, Any] = json.loads(json.dumps({"version": VERSION, "sizes": asdict(sizes)}))
    return content


def is_finished(folder: Path, sizes: DemoSizes | None = None) -> bool:
    """Tells whether ``folder`` holds the whole pool that this builder would make."""
    return files.holds(folder, stamp(sizes or DemoSizes()))


def ensure_pool(
    folder: Path | None = None, *, progress: Progress | None = None, sizes: DemoSizes | None = None
) -> Path:
    """Returns the folder of the finished demo pool, building it first if it is absent.

    Args:
        folder: where the pool lies; None for the user's cache folder. A folder of anything but
            an earlier demo is left alone.
        progress: called with one line of text after each part of the build.
        sizes: how large the pool is; None for the published one.

    Returns:
        The folder: ``base.safetensors``, ``models/``, ``heads/``, ``data/``,
        ``checkpoints.json``, ``recipe.yaml`` and the stamp ``demo.json``.

    Raises:
        MdftError: if an optional dependency is missing, or ``folder`` holds something else.

    Seeds are fixed: the same machine and number of threads give the same files. The caller's
    random state, default dtype and number of threads stay as they are. The pool is built beside
    its place and renamed when it is complete, so an interrupted build leaves nothing.
    """
    folder = expanded(folder or default_folder()).absolute()
    sizes = sizes or DemoSizes()
    if is_finished(folder, sizes):
        return folder
    files.refuse_foreign(folder)
    for module in _MODULES:  # all of them, before anything is drawn
        need(module, "demo", who="demo")
    with filled_once(folder, partial(is_finished, folder, sizes)) as made, _own_settings():
        _build(made, sizes, progress or (lambda line: None))
    return folder


@contextmanager
def _own_settings() -> Iterator[None]:
    """Shields the build from the caller's torch settings, and the caller's from the build."""
    with ExitStack() as stack:
        stack.enter_context(in_float32())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(0)
        yield


def _train_base(sizes: DemoSizes, progress: Progress) -> dict[str, Tensor]:
    generator = Generator("cpu").manual_seed(1)
    images, labels = draw_plain(sizes.mixture, generator)
    progress(f"base: drew {len(images)} images of {int(labels.max()) + 1} classes")
    tower = train.make_tower(sizes.tower)
    classes = int(labels.max()) + 1
    weight = train.random_head(classes, sizes.width, generator).requires_grad_()
    steps, size = sizes.base_steps, sizes.base_batch
    batches = train.epochs(images, labels, batch=size, steps=steps, generator=generator)
    train.fit(tower, weight, batches, train.muon(tower, weight), steps=steps)
    right = train.accuracy(tower, weight.detach(), images[:1000], labels[:1000])
    progress(f"base: {100 * right:.1f} % on its mixture after {steps} steps")
    return train.rounded(tower)


def _fine_tune(base: nn.Module, task: DemoTask, sizes: DemoSizes) -> files.TaskFiles:
    seen, labels = split_images(task, "train", sizes.train, sizes.test)
    test, answers = split_images(task, "test", sizes.train, sizes.test)
    head = train.class_mean_head(base, seen, labels, len(task.class_names)).half()
    tower = train.with_weights(base, base.state_dict())
    generator = Generator("cpu").manual_seed(2)
    batches = train.epochs(seen, labels, batch=sizes.batch, steps=sizes.steps, generator=generator)
    optimizer = train.adamw(list(tower.parameters()), sizes.learning_rate)
    train.fit(tower, head.float(), batches, [optimizer], steps=sizes.steps)
    model = train.rounded(tower)
    tower = train.with_weights(base, model)  # measured as it is stored
    accuracy = {
        "pretrained": train.accuracy(base, head.float(), test, answers),
        "finetuned": train.accuracy(tower, head.float(), test, answers),
    }
    return files.TaskFiles(task, model, head, seen[: sizes.unlabelled], test, answers, accuracy)


def _averages(base: nn.Module, parts: list[files.TaskFiles]) -> dict[str, float]:
    start = base.state_dict()
    sums = {n: sum(part.model[n].float() - v for part in parts) for n, v in start.items()}
    merged = train.with_weights(base, {n: v + TASK_ARITHMETIC * sums[n] for n, v in start.items()})
    rows = [
        (*p.accuracy.values(), train.accuracy(merged, p.head.float(), p.test, p.answers))
        for p in parts
    ]
    names = ("pretrained", "finetuned", "task_arithmetic")
    columns = zip(*rows, strict=True)
    return {n: round(sum(column) / len(rows), 4) for n, column in zip(names, columns, strict=True)}


def _build(folder: Path, sizes: DemoSizes, progress: Progress) -> None:
    weights = _train_base(sizes, progress)
    save_file(weights, folder / "base.safetensors")
    base = train.with_weights(train.make_tower(sizes.tower), weights)
    parts = []
    for number, task in enumerate((t for t in TASKS if t.name in sizes.tasks), start=1):
        parts.append(_fine_tune(base, task, sizes))
        files.write_task(folder, parts[-1])
        before, after = (100 * value for value in parts[-1].accuracy.values())
        progress(f"{number}/{len(sizes.tasks)} {task.name}: {before:.1f} % -> {after:.1f} %")
    files.write_manifest(folder, sizes.tower, parts)
    averages = _averages(base, parts)
    files.finish(folder, stamp(sizes), averages)
    progress("average: " + ", ".join(f"{n} {100 * v:.1f} %" for n, v in averages.items()))
