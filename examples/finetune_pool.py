# SPDX-License-Identifier: Apache-2.0
"""Supervised baselines: fine-tunes one model a task, and one for all tasks. READS LABELS.

    python examples/finetune_pool.py RECIPE --train FOLDER --out FOLDER

Nothing else of mdft_fast learns from labels. This makes a pool where there is none, and what
tables 2 and 3 of `benchmarks/run.py` compare with. Every model starts from the recipe's pool.base
and trains all its parameters; heads stay frozen. FOLDER holds `<task>.npz` (arrays x, uint8
[n, H, W, 3], and y) or `<task>/<class>/` folders of images. Where the recipe's head.file is
`<out>/heads/<task>.safetensors` and not there yet, it is made of the labelled images: class means
of the base's normalized features, times 20.

Written: models/<task>.safetensors, multi_task.safetensors, baselines.json: with the heads a pool.
Ctrl-C loses at most --save-every steps: the same command goes on, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mdft_fast import MdftError, NpzSource, Task, evaluate
from mdft_fast.app.opening import choose_device, preprocess_of, sources_of, spec_of
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import environment
from mdft_fast.arena import digest
from mdft_fast.checkpoints import open_state
from mdft_fast.data import Samples, load_labelled, npz_keys, read_class_names
from mdft_fast.files import replacing, write_json
from mdft_fast.learning import BatchOrder
from mdft_fast.model import build_backbone
from mdft_fast.pool import Head, fit, take_inventory

WARNING = "supervised: training labels were read to make every model here"
MULTI = "multi_task.safetensors"


class Labelled(NamedTuple):
    """A task with its labelled training images, int64 labels ``[n]``, and whose head it has."""

    task: Task
    samples: Samples
    labels: Tensor
    head_made: bool


class Pool:
    """The recipe's base as a module, and its tasks."""

    def __init__(self, recipe: Recipe, train: Path, out: Path) -> None:
        spec = spec_of(recipe)
        if recipe.pool.base is None or spec is None:
            raise MdftError("recipe: pool.base and backbone must be given, got none")
        self.base = build_backbone(spec)
        fitted = fit(open_state(recipe.pool.base), take_inventory(self.base))
        self.state, self.sha256 = dict(fitted.tensors), fitted.sha256()
        try:
            self.base.load_state_dict({k: v.float() for k, v in self.state.items()})
        except RuntimeError as error:
            raise MdftError(f"{recipe.pool.base}: must fit the backbone, got: {error}") from None
        self.device = choose_device(recipe.device)
        self.base.to(self.device).eval()
        self.preprocess = preprocess_of(recipe)
        self.heads = out / "heads"
        self.tasks = [self._read(given, train / given.name) for given in recipe.tasks]

    def _read(self, given: Any, place: Path) -> Labelled:
        """Reads one task's labelled images, and its head or the makings of one."""
        file = place.with_name(f"{place.name}.npz")
        names, source = given.class_names, None
        if file.is_file():
            if names is None and "class_names" in npz_keys(file):
                names = read_class_names(file)
            source = NpzSource(file, "x", "y")
        elif place.is_dir():
            from torchvision.datasets import ImageFolder

            found = sorted(p.name for p in place.iterdir() if p.is_dir())
            names = names or tuple(found)
            if sorted(names) != found:
                raise MdftError(f"{place}: folders must be the classes {names}, got {found}")
            order = [names.index(name) for name in found]
            source = ImageFolder(str(place), target_transform=order.__getitem__)
        else:
            raise MdftError(f"task {given.name!r}: no labelled images: neither {file} nor {place}")
        mine = self.heads.resolve() / f"{given.name}.safetensors"
        made = given.head.file.resolve() == mine and given.head.normalize
        head = None
        if mine.exists() or not made:
            head = Head.from_file(given.head.file, normalize=given.head.normalize)
        elif names is None:
            raise MdftError(f"task {given.name!r}: class_names must be given to make a head")
        names = names or [str(c) for c in range(head.classes)]
        samples, labels = load_labelled(source, self.preprocess, len(names))
        head = head or self._class_means(samples, labels, len(names))
        test = sources_of(given, transductive=True).evaluate
        return Labelled(Task(given.name, names, head, samples.x, test), samples, labels, made)

    @torch.no_grad()
    def _class_means(self, samples: Samples, labels: Tensor, classes: int) -> Head:
        rows = torch.arange(len(samples)).split(128)
        features = torch.cat([self.base(samples.batch(i, self.device)).cpu() for i in rows])
        sums = torch.zeros(classes, features.shape[1])
        sums.index_add_(0, labels, F.normalize(features, dim=-1))
        return Head(F.normalize(sums, dim=-1) * 20.0, normalize=True)

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns a model's weights as the base's file would hold them."""
        state = model.state_dict()
        return {k: state[k].detach().cpu().to(v.dtype).contiguous() for k, v in self.state.items()}

    def accuracy(self, model: nn.Module, tasks: list[Labelled]) -> dict[str, float]:
        """Measures a model as it is stored, on the recipe's test images."""
        model = copy.deepcopy(model)
        model.load_state_dict({k: v.float() for k, v in self.stored(model).items()})
        tests = [one.task for one in tasks if one.task.evaluate is not None]
        return evaluate(model.eval(), tests, preprocess=self.preprocess).accuracy


class Training:
    """One model on its way: all parameters of a copy of the base, on one task or on all."""

    def __init__(
        self, pool: Pool, tasks: list[Labelled], steps: int, batch: int, options: argparse.Namespace
    ) -> None:
        self.pool, self.tasks, self.steps, self.options = pool, tasks, steps, options
        self.model = copy.deepcopy(pool.base).train()
        for module in self.model.modules():  # running statistics would differ over the pool
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in self.trained)
        self.optimizer = torch.optim.AdamW(self.trained, lr=options.lr, weight_decay=0.01)
        self.heads = [one.task.head.to(pool.device, torch.float32) for one in tasks]
        stream = f"finetune/{len(tasks)}"
        self.orders = [BatchOrder(len(t.samples), batch, options.seed, f"{stream}/{t.task.name}")
                       for t in tasks]  # fmt: skip
        self.step, self.taken = 0, {"seconds": 0.0, "cpu_seconds": 0.0}

    def run(self, file: Path, config: dict[str, Any]) -> None:
        """Makes the steps that are left; saves where it stands now and then."""
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            if file.exists():
                self.restore(torch.load(file, weights_only=True), file, config)
            while self.step < self.steps:
                began, cpu = time.perf_counter(), time.process_time()
                self.update()
                self.taken["seconds"] += time.perf_counter() - began
                self.taken["cpu_seconds"] += time.process_time() - cpu
                if self.step % self.options.save_every == 0 and self.step < self.steps:
                    with replacing(file) as temporary:
                        torch.save(self.state() | {"config": config}, temporary)
                    print(f"{file.stem}: step {self.step} of {self.steps}", flush=True)

    def update(self) -> None:
        """Makes one step: a batch of every task, the mean of their losses."""
        warm = min(1.0, (self.step + 1) / max(1.0, 0.1 * self.steps))  # over a tenth of the steps
        for group in self.optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
            group["lr"] = self.options.lr * warm * cosine
        rows = [next(order) for order in self.orders]
        pairs = list(zip(self.tasks, rows, strict=True))
        images = torch.cat([one.samples.batch(row, self.pool.device) for one, row in pairs])
        features = self.model(images).split([len(row) for row in rows])
        losses = [
            F.cross_entropy(head(found), one.labels[row].to(self.pool.device))
            for head, found, (one, row) in zip(self.heads, features, pairs, strict=True)
        ]
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Returns all that :meth:`restore` needs to go on bit for bit."""
        random = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]  # dropout reads them
        return {"step": self.step, "model": self.model.state_dict(), "random": random,
                "optimizer": self.optimizer.state_dict(), "taken": dict(self.taken),
                "orders": [order.state() for order in self.orders]}  # fmt: skip

    def restore(self, state: dict[str, Any], file: Path, config: dict[str, Any]) -> None:
        """Goes to where :meth:`state` was taken."""
        if state["config"] != config:
            raise MdftError(f"{file}: must be of the same recipe, data and options, got others")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for order, saved in zip(self.orders, state["orders"], strict=True):
            order.restore(saved)
        torch.set_rng_state(state["random"][0])
        torch.cuda.set_rng_state_all(state["random"][1:])
        self.step, self.taken = state["step"], state["taken"]


def finetune(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Makes what is not there yet, and returns the content of ``baselines.json``."""
    out, report = options.out, options.out / "baselines.json"
    pool = Pool(recipe, options.train, out)
    config = {key: getattr(options, key) for key in ("steps", "batch", "lr", "seed")}
    config |= {"base_sha256": pool.sha256, "tasks": {
        t.task.name: digest(t.samples.x, t.labels, t.task.head.weight) for t in pool.tasks
    }}  # fmt: skip
    made = [t.task.name for t in pool.tasks if t.head_made]
    content: dict[str, Any] = {"labels": WARNING, "config": config, **environment(pool.device),
                               "heads_made": made, "models": {}}  # fmt: skip
    if report.exists():
        before = json.loads(report.read_text(encoding="utf-8"))
        if before.get("config") != config:
            raise MdftError(f"{out}: must be new or of the same recipe, data and options")
        content["models"] = before["models"]
    for one in pool.tasks:
        if one.head_made:
            _save({"weight": one.task.head.weight}, pool.heads / f"{one.task.name}.safetensors")
    share = max(1, options.batch // len(pool.tasks))  # of each task in a batch of all
    steps = max(1, options.steps * options.batch // share)  # as many images as all others saw
    units = [(f"models/{t.task.name}.safetensors", [t], options.steps, options.batch)
             for t in pool.tasks]  # fmt: skip
    for name, tasks, many, batch in [*units, (MULTI, pool.tasks, steps, share)]:
        if name in content["models"] and (out / name).is_file():
            continue
        training, file = Training(pool, tasks, many, batch, options), out / "state" / f"{name}.pt"
        training.run(file, config)
        _save(pool.stored(training.model), out / name)
        accuracy = pool.accuracy(training.model, tasks)
        content["models"][name] = {"accuracy": accuracy, **training.taken, "steps": many,
                                   "images": many * batch * len(tasks),
                                   "trainable": training.trainable}  # fmt: skip
        write_json(report, content)
        file.unlink(missing_ok=True)
        print(f"{name}: {accuracy}", flush=True)
    return content


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"labels": WARNING})


def main(argv: list[str]) -> int:
    """Reads the command line and trains; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("recipe", type=Path)
    add("--train", type=Path, required=True, help="folder of labelled training images")
    add("--out", type=Path, required=True)
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe")
    add("--steps", type=int, default=300, help="of each task's own model")
    add("--batch", type=int, default=64)
    add("--lr", type=float, default=1e-4, help="highest rate of AdamW")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=20, help="steps between two states")
    options = parser.parse_args(argv)
    print(WARNING, flush=True)
    try:
        finetune(Recipe.load(options.recipe, options.set), options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where the last state was saved", file=sys.stderr)
        return 130
    except MdftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
