# SPDX-License-Identifier: Apache-2.0
"""A run's start as a file of its folder: made once, and taken from there ever after.

Made again it could differ by round-off, on another machine say, and the run's cards would then
belong to another pool.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mdft_fast.app.opening import Built, LoadedData, merged, start_of
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running.run_folder import START, RunFolder
from mdft_fast.arena import TaskVectors, digest
from mdft_fast.cards import CoefficientCard
from mdft_fast.checkpoints import entry, write_tensors
from mdft_fast.errors import MdftError
from mdft_fast.files import replacing
from mdft_fast.methods import SamplesToLearn, Start, Watch
from mdft_fast.pool import Pool


def make_start(built: Built, data: LoadedData, folder: RunFolder, watch: Watch) -> Pool:
    """Returns the pool with the recipe's start: a resumed run's own, else one that is made.

    ``watch`` is told how many of how many parts are done.

    Raises:
        MdftError: if a resumed run's file is missing though its stages have begun, or is not what
            the run was started with.
    """
    start, path = start_of(built.recipe), folder.path / START
    assert start is not None
    samples = _samples(start, built, data)
    if folder.resume and (path.exists() or folder.has_begun):
        return built.pool.with_start(read_start(path, start, built.pool, samples))
    made = merged(built, data, watch)
    folder.claim()
    write_start(path, start, built.pool, made, samples)
    return built.pool.with_start(made)


def pool_of_card(recipe: Recipe, pool: Pool, card: CoefficientCard, file: Path) -> Pool:
    """Returns the pool that a run's card belongs to: with the run's start, where it has one.

    Args:
        recipe: the run's.
        pool: as the recipe opens it.
        card: of the run.
        file: the card's; the run's folder is the nearest above it that holds a start, else the
            recipe's output.
    """
    start = start_of(recipe)
    if start is None or pool.start is not None or pool.checksum == card.pool_checksum:
        return pool
    folders = [*file.absolute().parents, recipe.output]
    folder = next((one for one in folders if (one / START).is_file()), recipe.output)
    return pool.with_start(read_start(folder / START, start, pool))


def write_start(path: Path, start: Start, pool: Pool, made: Pool, samples: str = "") -> None:
    """Writes a start's vector, whole or not at all, with what it belongs to.

    Args:
        path: a safetensors file.
        start: what made it.
        pool: of whose vectors.
        made: a pool of it alone.
        samples: digest of the samples that were looked at.
    """
    about = _about(start, pool, samples)
    about["sha256"] = digest(*made.vectors.tensors)
    with replacing(path) as temporary:
        entries = map(entry, ("codes", "scales"), made.vectors.tensors)
        write_tensors(temporary, entries, metadata={"format": "pt", **about})


def read_start(path: Path, start: Start, pool: Pool, samples: str | None = None) -> Pool:
    """Returns a pool of the start's vector alone, as :func:`write_start` wrote it.

    Args:
        path: the file.
        start: what must have made it.
        pool: of whose vectors.
        samples: digest of the samples that must have been looked at; None: any.

    Raises:
        MdftError: if the file is missing, damaged or changed, or another start's.
    """
    if not path.is_file():
        raise MdftError(
            f"{path}: missing: the run's start is taken from there, as {start.method.name!r} made "
            "again could differ by round-off"
        )
    tensors, about = _content(path)
    expected = _about(start, pool, about.get("samples", "") if samples is None else samples)
    for key, value in expected.items():
        if about.get(key) != value:
            raise MdftError(
                f"{path}: {key} must be what the run was started with, {about.get(key)!r}, got "
                f"{value!r}"
            )
    sha256 = digest(*(tensors[name] for name in ("codes", "scales") if name in tensors))
    if sha256 != about.get("sha256"):
        raise MdftError(
            f"{path}: sha256 must be {about.get('sha256')}, got {sha256}: the file changed since "
            "it was written"
        )
    vectors = TaskVectors(tensors["codes"], pool.codec, tensors.get("scales"))
    return pool.with_vectors(
        vectors, [sha256], vector_names=(start.method.name,), methods=(*pool.methods, str(start))
    )


def _about(start: Start, pool: Pool, samples: str) -> dict[str, str]:
    return {
        "start": str(start),
        "pool": pool.checksum,
        "codec": pool.codec,
        "samples": samples,
    }


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns a file's tensors, mapped, and what it says of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise MdftError(f"{path}: not a readable safetensors file: {error}") from None


def _samples(start: Start, built: Built, data: LoadedData) -> str:
    """Returns a digest of the samples that a start may look at; "" where it looks at none."""
    if "inputs" not in start.method.needs:
        return ""
    total = hashlib.sha256()
    for task in data.tasks:
        seen = SamplesToLearn(task, start.holdout, start.seed)
        total.update(task.name.encode())
        total.update(seen.load_samples(built.pool.preprocess).digests().tobytes())
    return total.hexdigest()
