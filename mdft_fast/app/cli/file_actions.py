# SPDX-License-Identifier: Apache-2.0
"""What the commands do with recipes, checkpoints and pools. Importing this loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdft_fast.app.cli.console import complain
from mdft_fast.app.opening import pack
from mdft_fast.app.recipe import Recipe, draft, parse, unknown_keys
from mdft_fast.checkpoints import State, convert, describe, sniff
from mdft_fast.errors import MdftError
from mdft_fast.files import write_text
from mdft_fast.pool import Pool


def load_recipe(path: Path, assignments: Sequence[str], output: Path | None = None) -> Recipe:
    """Reads a recipe; ``output``, from the command line, starts at the working folder."""
    if output is not None:
        quoted = str(output.absolute()).replace("'", "''")  # YAML's own quotes
        assignments = [*assignments, f"output='{quoted}'"]
    return Recipe.load(path, assignments)


def check_free(target: Path, overwrite: bool) -> None:
    """Refuses a folder as the name of a file to write, and a file that is there already."""
    if target.is_dir():
        raise MdftError(f"{target}: must be a file to write, got a folder")
    if target.exists() and not overwrite:
        raise MdftError(f"{target}: must not exist, got a file; --overwrite replaces it")


def draft_recipe(folder: Path, target: Path, overwrite: bool) -> int:
    """Writes a recipe for a folder of checkpoints; returns how often it says CHANGE_ME."""
    check_free(target, overwrite)
    text = draft(folder, target)
    write_text(target, text)
    return len(list(unknown_keys(parse(text), "")))


def describe_file(path: Path, every: bool) -> str:
    """Returns what a checkpoint, head, adapter or packed pool is."""
    packed = sniff(path) == "pool"
    return Pool.open(path).describe() if packed else describe(path, every=every)


def convert_file(source: Path, target: Path, base: Path | None, overwrite: bool) -> State:
    """Writes a checkpoint as one safetensors file; returns what was written."""
    check_free(target, overwrite)
    return convert(source, target, base=base, overwrite=overwrite)


def pack_pool(
    source: Path, folder: Path, codec: str | None, overwrite: bool, assignments: Sequence[str]
) -> Pool:
    """Packs a recipe's checkpoints, or a packed pool again; returns the new pool, mapped."""
    if folder.exists() and not overwrite:
        raise MdftError(f"{folder}: already exists; --overwrite replaces it")
    if not source.is_dir():
        recipe = load_recipe(source, assignments)
        if recipe.pool.folder is not None:
            _warn_of_rounding(Pool.open(recipe.pool.folder), codec)
        return pack(recipe, folder, codec=codec, overwrite=overwrite)
    if assignments:
        raise MdftError(f"--set: is for a recipe, got {source}, a folder")
    old = Pool.open(source, verify=True)  # a damaged pool must not come out with new checksums
    _warn_of_rounding(old, codec)
    old.save(folder, codec, overwrite=overwrite)
    return Pool.open(folder)


def _warn_of_rounding(old: Pool, codec: str | None) -> None:
    if old.codec != "fp32" and codec not in (None, old.codec):
        complain(
            f"warning: the pool's task vectors are rounded to codec {old.codec!r} already, and "
            f"that error stays; packing the checkpoints in {codec!r} is more accurate"
        )
