# SPDX-License-Identifier: Apache-2.0
"""Writes a first recipe for a folder of checkpoints, every key with a comment."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mdft_fast.errors import MdftError
from mdft_fast.recipe.presets import PRESETS
from mdft_fast.recipe.recipe import UNKNOWN
from mdft_fast.recipe.text import render

_UNLABELLED = ("x_unlabelled", "x_unlabeled", "unlabelled", "x_train", "x", "images")
_COMMENTS = {  # what the preset decides; a path of keys -> what it means
    "granularity": "what shares a coefficient: task, block or tensor",
    "start": "coefficients before the first step; one number, or a list with one a task",
    "construct.steps": "updates of the coefficients",
    "construct.batch": "samples a task and step",
    "construct.draw": "kept: draw from the samples that pass the filter; batch: draw, then filter",
    "construct.objective.alpha": "weight of the cross-entropy to the teachers",
    "construct.objective.entropy": "whether the model's own entropy is minimised too",
    "construct.objective.reweight": "as_written, normalized or off",
    "construct.filter.enabled": "whether unsure samples are removed",
    "construct.filter.mu": "removed where entropy >= mu log(classes)",
    "construct.filter.entropy_of": "teacher or meta; meta needs draw: batch",
    "construct.optimizer.name": "adam, adamw or sgd",
    "construct.optimizer.lr": "learning rate of the first step",
    "construct.optimizer.schedule": "constant or cosine",
    "construct.holdout": "share of the unlabelled samples kept apart to measure on",
    "specialize.tasks": "all, none or a list of names",
    "specialize.steps": "updates; the end of the road is the task's own model, so few",
    "specialize.batch": "samples a step",
    "specialize.representation": "what is aligned: encoder, normalized or logits",
    "specialize.optimizer.name": "adam, adamw or sgd",
    "specialize.optimizer.lr": "1e-3 hardly moves in 20 steps",
    "specialize.optimizer.schedule": "constant or cosine",
    "specialize.control": "stage 2 without stage 1 too: shows what stage 1 is worth",
}
_SECTIONS = {"construct": "stage 1: one model for all tasks", "specialize": "stage 2: one a task"}
_HEAD = """\
# A recipe for mdft. Relative paths start at this file. Check it, then:
#
#   mdft run {file}
#
# Lines that begin with "# " and a key show the preset's value; take the "# " off to change one.
version: 1                 # of this format
preset: default            # paper: the method to the letter; adamerging, entropy: what it builds on
"""
_OUTPUT = "the run folder; an older run is never overwritten"
_TAIL = """\
transform: []              # of task vectors; none so far
device: auto               # cpu, cuda, cuda:0; auto: CUDA where there is one
precision: fp32            # of merged weights and activations: fp32 or bf16
memory:                    # how weights are held; `mdft plan` shows what each choice takes
  mode: auto               # resident, layerwise or streamed; auto: the fastest that fits
  codec: fp32              # how task vectors are stored: fp32, bf16, fp16, int8 or int4
  budget: null             # what a run may take, 4GB say; null: what is free
  checkpointing: false     # true: a block's activations are computed again in backward
  micro_batch: null        # images a forward pass; null: a whole step's at once
seed: 0                    # of every draw: equal seeds, equal results
deterministic: true        # equal inputs give equal bits
transductive: false        # true: the unlabelled samples may be the test images
duplicates: refuse         # drop: test images among the unlabelled samples are left out
"""


def draft(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Returns the text of a recipe for what a folder holds.

    Args:
        folder: ``base*.safetensors``, ``base*.pt`` or ``zeroshot.pt``, and the fine-tuned models,
            beside it or in ``models/``; if they are there, ``heads/<task>.safetensors`` or
            ``head_<Task>.pt``, ``data/<task>.npz`` and ``pool.json``.
        target: the file that the text is for; paths are relative to its folder.

    Raises:
        MdftError: if there is no base or no model.

    What cannot be found out is written as ``CHANGE_ME``, with a comment. Nothing is written.
    """
    folder, target = Path(folder).absolute(), Path(target).absolute()
    if not folder.is_dir():
        raise MdftError(f"{folder}: must be a folder of checkpoints, got no such folder")
    facts = _facts(folder / "pool.json")
    if (folder / "tau.safetensors").is_file():  # a packed pool
        names = [task["name"] for task in facts.get("tasks", [])]
        source = [
            _line("pool:", "the models"),
            _line(f"  folder: {_path(folder, target)}", "a packed pool"),
        ]
    else:
        base, inside, models = _checkpoints(folder)
        names = _in_order(list(models), facts)
        source = [
            _line("pool:", "the models"),
            _line(f"  base: {_path(base, target)}", "the pre-trained model"),
            _line(f"  models: {_path(inside, target)}", "holds <task>.safetensors or the like"),
            *_architecture(facts),
        ]
    lines = [_line("tasks:", "each: model, classifier, unlabelled samples")]
    for name in names:
        told = _task(folder, name, target, facts)
        lines += told if name == names[0] else [line for line in told if not _is_remark(line)]
    head, tail = _HEAD.format(file=target.name), _line(f"output: runs/{target.stem}", _OUTPUT)
    return "\n".join([head, *source, *lines, *_preset_lines(), _TAIL + tail]) + "\n"


def _facts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise MdftError(f"{path}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _checkpoints(folder: Path) -> tuple[Path, Path, list[str]]:
    """Returns the base's file, the models' folder, and the models' names, sorted."""
    bases = sorted(folder.glob("base*.safetensors")) or sorted(
        [*folder.glob("base*.pt"), *folder.glob("zeroshot.pt")]
    )
    if len(bases) != 1:
        got = [base.name for base in bases] or "none"
        raise MdftError(
            f"{folder}: must hold one base*.safetensors, base*.pt or zeroshot.pt, got {got}"
        )
    inside = folder / "models" if (folder / "models").is_dir() else folder
    files = [*inside.glob("*.safetensors"), *inside.glob("*.pt")]
    names = {f.stem for f in files if f != bases[0] and not f.name.startswith("head_")}
    names |= {path.parent.name.lower() for path in inside.glob("*/finetuned.pt")}
    if not names:
        raise MdftError(
            f"{inside}: must hold the fine-tuned models as *.safetensors, *.pt or "
            f"<task>/finetuned.pt, got none"
        )
    return bases[0], inside, sorted(names)


def _in_order(names: list[str], facts: Mapping[str, Any]) -> list[str]:
    known = [task["name"] for task in facts.get("tasks", []) if isinstance(task, dict)]
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def _architecture(facts: Mapping[str, Any]) -> list[str]:
    built, seen = facts.get("architecture", {}), facts.get("input", {})
    size, mean, std = (_value(seen.get(key, UNKNOWN)) for key in ("size", "mean", "std"))
    return [
        _line("backbone:", "builds the module whose parameters are merged"),
        _line(
            f"  library: {_value(built.get('library', 'timm'))}", "timm, open_clip or transformers"
        ),
        _line(f"  name: {_value(built.get('name', UNKNOWN))}", "the library's name of the model"),
        _line(f"  kwargs: {_value(built.get('kwargs', {}))}", "of the library's builder"),
        _line("preprocess:", "from uint8 images to inputs"),
        _line(f"  size: {size}", "pixels: one number or [height, width]"),
        _line(f"  mean: {mean}", "on the scale 0 to 1; one number or one a channel"),
        _line(f"  std: {std}", "likewise"),
    ]


def _task(folder: Path, name: str, target: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    head, data = _head(folder, name), folder / "data" / f"{name}.npz"
    yield "  # a name, unique; it names files and folders"
    yield f"  - name: {_value(name)}"
    if not (folder / "tau.safetensors").is_file():  # a packed pool holds its heads
        file = _path(head, target) if head.is_file() else UNKNOWN
        normal = _value("normalize(" in str(facts.get("head", "")))
        says = head.suffix == ".pt"  # task_vectors' heads know it themselves
        yield "    # the classifier; normalize: whether it reads features at length 1"
        yield f"    head: {{file: {file}{'' if says else f', normalize: {normal}'}}}"
    arrays = _arrays(data)
    where = _path(data, target) if data.is_file() else UNKNOWN
    x = next((key for key in _UNLABELLED if key in arrays), UNKNOWN)
    yield "    # unlabelled samples: an array of the file, uint8 [n, H, W, 3]"
    yield f"    adapt: {{npz: {where}, x: {x}}}  # or {{folder: ...}}, {{torchvision: ...}}"
    labelled = {"x_test", "y_test"} <= arrays
    yield "    # labelled samples, to measure accuracy at the end; nothing is learned from them"
    off, file = ("", where) if labelled else ("# ", UNKNOWN)
    yield f"    {off}evaluate: {{npz: {file}, x: x_test, y: y_test}}"


def _head(folder: Path, name: str) -> Path:
    """Returns ``heads/<task>.safetensors``, or task_vectors' ``head_<Task>.pt`` where it is."""
    for path in sorted(folder.glob("head_*.pt")):
        if path.stem.lower() == f"head_{name}".lower():
            return path
    return folder / "heads" / f"{name}.safetensors"


def _is_remark(line: str) -> bool:
    text = line.strip()
    return text.startswith("#") and not text.startswith("# evaluate: {")


def _arrays(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def _preset_lines() -> Iterator[str]:
    for key, value in PRESETS["default"].items():
        if isinstance(value, dict):
            yield _line(f"{key}:", _SECTIONS[key])
            yield from _commented(value, key, "  ")
        else:
            yield _line(f"# {key}: {_value(value)}", _COMMENTS[key])


def _commented(values: Mapping[str, Any], path: str, indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _commented(value, f"{path}.{key}", f"{indent}  ")
        else:
            yield _line(f"{indent}# {key}: {_value(value)}", _COMMENTS[f"{path}.{key}"])


def _line(text: str, comment: str) -> str:
    return f"{text:<25}  # {comment}"


def _path(path: Path, target: Path) -> str:
    return _value(Path(os.path.relpath(path, target.parent)).as_posix())


def _value(value: Any) -> str:
    """Returns a value as YAML on one line, fit for a flow mapping."""
    text = " ".join(render([value]).split())
    return text[2:] if text.startswith("- ") else text[1:-1]
