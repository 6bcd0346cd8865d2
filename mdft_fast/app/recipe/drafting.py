# SPDX-License-Identifier: Apache-2.0
"""Writes a first recipe for a folder of checkpoints, every key with a comment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdft_fast.app.recipe.discovery import find_head, find_models, find_samples, notes_of
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import UNKNOWN
from mdft_fast.app.recipe.yaml_text import render
from mdft_fast.checkpoints import OTHER, open_state
from mdft_fast.errors import MdftError
from mdft_fast.model import Recognized, recognize

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
_PREPROCESS = {
    "size": "pixels: one number or [height, width]",
    "mean": "on the scale 0 to 1; one number or one a channel",
    "std": "likewise",
}
_RESIZING = {
    "resize": "shortest or squash",
    "interpolation": "bicubic or bilinear",
    "crop_pct": "share of the resized edges that is cut out",
}
_SECTIONS = {"construct": "stage 1: one model for all tasks", "specialize": "stage 2: one a task"}
_HEAD = """\
# A recipe for mdft. Relative paths start at this file. Check it, then:
#
#   mdft run {file}
#
# Lines that begin with "# " and a key show what holds anyway; take the "# " off to change it.
version: 1                 # of this format
preset: default            # paper: the method to the letter; adamerging, entropy: what it builds on
"""
_OUTPUT = "the run folder; an older run is never overwritten"
_TAIL = """\
transform: []              # of task vectors, as in [{ties: {density: 0.2}}]; see mdft methods
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
        folder: ``base*.safetensors``, ``base*.pt``, ``zeroshot.pt`` or a folder ``base*`` of
            transformers or open_clip, and the fine-tuned models, beside it or in ``models/``, as
            files, folders or LoRA adapters; if they are there, ``heads/<task>.safetensors`` or
            ``head_<Task>.pt``, ``data/<task>.npz``, images in ``data/<task>/`` or ``<task>/``, and
            ``pool.json``.
        target: the file that the text is for; paths are relative to its folder.

    Raises:
        MdftError: if there is no base or no model, or one of the files is not readable.

    What cannot be found out says ``CHANGE_ME``, with a comment. No file is written, no weight read.
    """
    folder, target = Path(folder).absolute(), Path(target).absolute()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise MdftError(f"{folder}: must be a folder of checkpoints, got {got}")
    facts = notes_of(folder)
    if (folder / "tau.safetensors").is_file():  # a packed pool
        names = [task["name"] for task in facts.get("tasks", [])]
        source = [
            _line("pool:", "the models"),
            _line(f"  folder: {_value(_path(folder, target))}", "a packed pool"),
        ]
    else:
        base, inside, models = find_models(folder)
        names = _in_order(models, facts)
        source = [
            _line("pool:", "the models"),
            _line(f"  base: {_value(_path(base, target))}", "the pre-trained model"),
            _line(
                f"  models: {_value(_path(inside, target))}", "holds <task>.safetensors or the like"
            ),
            *_architecture(base, facts),
        ]
    lines = [_line("tasks:", "each: model, classifier, unlabelled samples")]
    for name in names:
        told = _task(folder, name, target, facts)
        lines += told if name == names[0] else [line for line in told if not _is_remark(line)]
    head, tail = _HEAD.format(file=target.name), _line(f"output: runs/{target.stem}", _OUTPUT)
    return "\n".join([head, *source, *lines, *_preset_lines(), _TAIL + tail]) + "\n"


def _in_order(names: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    known = [task["name"] for task in facts.get("tasks", [])]
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def _architecture(base: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields backbone and preprocess, by ``pool.json`` or else by the base."""
    opened = open_state(base)
    built = facts.get("architecture", {})
    if built:
        found = Recognized(built.get("library", "timm"), built.get("name"), built.get("kwargs", {}))
    else:
        found = recognize(base, opened) or Recognized("timm", None)
    kwargs = {key: UNKNOWN if value is None else value for key, value in found.kwargs.items()}
    yield _line("backbone:", "builds the module whose parameters are merged")
    yield _line(f"  library: {_value(found.library)}", "timm, open_clip or transformers")
    said = "the library's name of the model"
    yield _line(
        f"  name: {_value(found.name or UNKNOWN)}", said if found.name else found.note or said
    )
    note = found.note if found.name else ""
    yield _line(f"  kwargs: {_value(kwargs)}", note or "of the library's builder")
    yield from _preprocess(base.name, opened.facts.preprocess(), facts.get("input", {}))


def _preprocess(base: str, said: Mapping[str, Any], noted: Mapping[str, Any]) -> Iterator[str]:
    """Yields the section, as a comment where the base says all of it by itself."""
    if said.keys() >= _PREPROCESS.keys() and OTHER not in said.values():
        yield _line(f"# preprocess: {_value(said)}", f"as {base} says, where a run finds it")
        return
    yield _line("preprocess:", "from uint8 images to inputs")
    for key, comment in _PREPROCESS.items():
        value = said.get(key, noted.get(key, UNKNOWN))
        yield _line(f"  {key}: {_value(value)}", f"as {base} says" if key in said else comment)
    for key, comment in _RESIZING.items():
        if said.get(key) == OTHER:
            yield _line(f"  {key}: {UNKNOWN}", f"{comment}; {base} has another way")
        elif key in said:
            yield _line(f"  {key}: {said[key]}", f"as {base} says")


def _task(folder: Path, name: str, target: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    found = find_head(folder, name)
    yield "  # a name, unique; it names files and folders"
    yield f"  - name: {_value(name)}"
    if not (folder / "tau.safetensors").is_file():  # a packed pool holds its heads
        head: dict[str, Any] = {"file": found[0] if found else UNKNOWN}
        if found is None or found[1].normalize is None:  # task_vectors' heads know it themselves
            head["normalize"] = "normalize(" in str(facts["head"]) if "head" in facts else UNKNOWN
        yield "    # the classifier; normalize: whether it reads features at length 1"
        yield f"    head: {_flow(head, target)}"
    rows = found[1].tensors.get("weight") if found else None
    classes = len(rows) if rows is not None and rows.dim() else None
    adapt, test = find_samples(folder, name, classes)
    adapt = adapt or {"npz": UNKNOWN, "x": UNKNOWN}
    yield "    # unlabelled samples: an array uint8 [n, H, W, 3], or a folder of images"
    yield f"    adapt: {_flow(adapt, target)}  # or {{torchvision: ...}}, {{hf: ...}}"
    yield "    # labelled samples, to measure accuracy at the end; nothing is learned from them"
    if test:
        yield f"    evaluate: {_flow(test, target)}"
    else:
        yield f"    # evaluate: {{npz: {UNKNOWN}, x: x_test, y: y_test}}"


def _flow(mapping: Mapping[str, Any], target: Path) -> str:
    """Returns a mapping on one line, paths relative to the recipe."""
    shown = {
        key: _path(value, target)
        if isinstance(value, Path)
        else UNKNOWN
        if value is None
        else value
        for key, value in mapping.items()
    }
    return _value(shown)


def _is_remark(line: str) -> bool:
    text = line.strip()
    return text.startswith("#") and not text.startswith("# evaluate: {")


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
    return Path(os.path.relpath(path, target.parent)).as_posix()


def _value(value: Any) -> str:
    """Returns a value as YAML on one line, fit for a flow mapping."""
    return render([value], one_line=True).strip()[1:-1]
