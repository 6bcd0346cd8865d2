# SPDX-License-Identifier: Apache-2.0
"""Mutates files of every format; what reads them gives the right content, or says what is wrong."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import TIMES, read_metrics, read_result
from mdft_fast.app.running.run_state import read_state, write_state
from mdft_fast.app.running.same_inputs import RECIPE, SPLITS, check_inputs, write_inputs
from mdft_fast.cards import CoefficientCard
from mdft_fast.checkpoints import open_state
from mdft_fast.data import FolderSource, NpzSource
from mdft_fast.data.samples import load_samples
from mdft_fast.errors import MdftError
from mdft_fast.json_checksums import with_checksum
from mdft_fast.pool import Head, Pool
from tests.app.conftest import recipe_of, write_files
from tests.app.report.conftest import make_metrics, make_result
from tests.pool.conftest import tiny_parts
from tests.reliability.children import child

_A_CHILD = 25  # mutations in one child: a fork costs as much as reading a small file
_RUN = "a run"
_PREPROCESS = {"size": 32, "mean": 0.5, "std": 0.5}
_TASK = {"name": "shapes", "samples": "1" * 64, "learn": [0], "holdout": []}
_INPUTS: Mapping[str, Any] = {"pool": "0" * 64, "tasks": [_TASK]}


class Format(NamedTuple):
    """A file that strangers, disks and networks change.

    Attributes:
        name: of the format.
        file: which is mutated.
        read: gives its content; raises what a user would see.
        checksum: whether the format has one, so that no other content may be taken for it.
    """

    name: str
    file: Path
    read: Callable[[], Any]
    checksum: bool


def formats(folder: Path) -> list[Format]:
    """Writes a small file of every format."""
    files = write_files(folder)
    model = {n: t for n, t in load_file(files / "models/shapes.safetensors").items() if "norm" in n}
    few = folder / "few.safetensors"
    save_file(model, few)
    torch.save(model, folder / "zip.pt")
    torch.save(model, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    head, npz = files / "heads/shapes.safetensors", files / "data/shapes.npz"
    recipe = files / RECIPE
    recipe.write_text(yaml.safe_dump({**recipe_of(files), "output": str(folder / "run")}))
    loaded = Recipe.load(recipe)
    pool = _pool(folder / "pool")
    card = folder / "card.json"
    names, columns = ("shapes", "letters"), ("a", "b", "c")
    CoefficientCard(torch.rand(2, 3), names, columns, "tensor", pool.checksum).save(card)
    state = {"step": 2, "path": torch.rand(3, 2, 3), "orders": {"shapes": {"position": 3}}}
    write_state(folder / "state.pt", state, _RUN)
    write_inputs(folder, loaded, _INPUTS)
    metrics = "".join(json.dumps(with_checksum(line, TIMES)) + "\n" for line in make_metrics())
    (folder / "metrics.jsonl").write_text(metrics)
    (folder / "result.json").write_text(json.dumps(with_checksum(make_result())))
    image = _image(folder / "images")
    index = folder / "sharded/model.safetensors.index.json"
    index.parent.mkdir()
    shutil.copy(few, index.parent)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(model, few.name)}))

    def verified() -> Any:
        opened = Pool.open(folder / "pool", verify=True)
        heads = [t for h in opened.heads.values() for t in h.tensors.values()]
        return [opened.describe(), opened.base, *opened.vectors.tensors, *heads]

    return [
        Format("safetensors", few, _state(few), False),
        Format("torch, zip", folder / "zip.pt", _state(folder / "zip.pt"), True),
        Format("torch, legacy", folder / "legacy.pt", _state(folder / "legacy.pt"), False),
        Format("index of shards", index, _state(index), False),
        Format("head", head, lambda: list(Head.from_file(head, normalize=True).tensors.values()),
               False),
        Format("npz", npz, lambda: load_samples(NpzSource(npz, "x_unlabelled"), _PREPROCESS).x,
               True),
        Format("image", image, lambda: load_samples(FolderSource(image.parents[1]), _PREPROCESS).x,
               False),
        Format("recipe", recipe, lambda: Recipe.load(recipe).dump(), False),
        *(Format(f"pool: {name}", folder / "pool" / name, verified, True)
          for name in ("pool.json", "base.safetensors", "tau.safetensors",
                       "heads/task1.safetensors")),
        Format("card", card, lambda: _card(card), True),
        Format("state", folder / "state.pt", lambda: read_state(folder / "state.pt", _RUN), True),
        Format("splits.json", folder / SPLITS, lambda: check_inputs(folder, _INPUTS), True),
        Format("metrics.jsonl", folder / "metrics.jsonl", lambda: _covered(folder), True),
        Format("result.json", folder / "result.json", lambda: read_result(folder), True),
    ]  # fmt: skip


def _covered(folder: Path) -> list[dict[str, Any]]:
    """Returns what the checksums of a run's metrics cover."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder)]


def mutate(one: Format, times: int, seed: int) -> Counter[str]:
    """Reads a file mutated at random that many times, and leaves it as it was.

    Returns:
        How often what happened: "right content", "refused", and, where the format has no checksum,
        "other content"; anything else is wrong, in words.
    """
    whole = one.file.read_bytes()
    draw = random.Random(f"{seed} {one.name}")
    mutants = [_mutant(whole, draw) for _ in range(times)]
    read = child(lambda say: say(_content(one)))
    assert read.said, f"{one.name} is not readable unchanged"
    wanted, usual = read.said[0], read.memory
    outcomes: Counter[str] = Counter()
    while mutants:
        part = mutants[:_A_CHILD]
        ended = child(lambda say, part=part: _read_all(one, part, say))
        mutants = mutants[len(ended.said) :]
        outcomes.update(_outcome(one, said, wanted) for said in ended.said)
        if len(ended.said) < len(part):
            outcomes["hang" if ended.hung else f"signal {ended.signal}"] += 1
            mutants = mutants[1:]
        if ended.memory > usual + (2 << 30):
            outcomes["more than 2 GiB"] += 1
    one.file.write_bytes(whole)
    return outcomes


def _outcome(one: Format, said: list[str], wanted: list[str]) -> str:
    kind, words = said
    if kind != "read":
        return "refused" if kind == "refused" else words
    if said == wanted:
        return "right content"
    if one.name == "metrics.jsonl" and _is_beginning(words, wanted[1]):
        return "right content"  # the end of the file is the end of what a kill has left
    return "other content" if not one.checksum else "other content, with a checksum"


def _is_beginning(words: str, wanted: str) -> bool:
    return wanted.startswith(words.rstrip("]")) if words.startswith("[") else False


def _read_all(one: Format, mutants: Iterable[bytes], say: Callable[[Any], None]) -> None:
    for mutant in mutants:
        one.file.write_bytes(mutant)
        say(_content(one))


def _content(one: Format) -> list[str]:
    try:
        content = one.read()
        if one.name == "metrics.jsonl":
            return ["read", json.dumps(content)]
        total = hashlib.sha256()
        for part in _parts(content):
            total.update(part)
        return ["read", total.hexdigest()]
    except MdftError:
        return ["refused", ""]
    except BaseException as error:
        return ["raised", f"traceback: {type(error).__name__}"]


def _parts(value: Any) -> Iterable[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    else:
        yield repr(value).encode()


def _mutant(whole: bytes, draw: random.Random) -> bytes:
    """Returns a file with one change: a bit, a byte, a run of bytes, or its length."""
    size = len(whole)
    near = draw.choice((size, min(size, 400)))  # half of them where headers and directories are
    at = draw.randrange(near) if draw.random() < 0.5 else size - 1 - draw.randrange(near)
    run = draw.choice((1, 2, 8, 64, 512))
    end = min(size, at + run)
    kind = draw.randrange(8)
    if kind <= 1:
        return whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
    if kind == 2:
        return whole[:at] + draw.choice((b"\0", b"\xff", b"9", b'"', b"[", b"\n")) + whole[at + 1 :]
    if kind == 3:
        return whole[:at] + draw.randbytes(end - at) + whole[end:]
    if kind == 4:
        return whole[:at] + bytes(end - at) + whole[end:]
    if kind == 5:
        return whole[:at] + whole[end:]
    if kind == 6:
        return whole[:end] + whole[at:end] + whole[end:]
    return whole[:at]


def _state(path: Path) -> Callable[[], Any]:
    def read() -> Any:
        state = open_state(path)
        state.check()
        return {name: state.tensors[name] for name in state.tensors}

    return read


def _card(path: Path) -> Any:
    card = CoefficientCard.load(path)
    return [card.coefficients, card.tasks, card.columns, card.granularity, card.pool_checksum]


def _image(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("circle", "square"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / name / "1.png")
    return folder / "circle/1.png"


def _pool(folder: Path) -> Pool:
    parts = tiny_parts()
    parts.options["codec"] = "int8"
    pool = parts.build()
    pool.save(folder)
    return pool
