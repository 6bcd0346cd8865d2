# SPDX-License-Identifier: Apache-2.0
"""``mdft inspect`` and ``mdft convert``: commands on one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdft_fast.app.cli.console import check_free, say


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, head, adapter or packed pool.")],
    every: Annotated[bool, typer.Option("--all", help="Lists every tensor.")] = False,
) -> None:
    """Tells what a file or folder is.

    Format, tensors, dtypes, bytes, a prefix of all names, what it says about activation and image
    size, and what would be left out, with why. Nothing that the file holds is executed.

    Example: mdft inspect checkpoints/ViT-B-32/zeroshot.pt
    """
    from mdft_fast.checkpoints import describe, sniff
    from mdft_fast.pool import Pool

    packed = sniff(path) == "pool"
    say(Pool.open(path).describe() if packed else describe(path, every=every))


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint, head or LoRA adapter.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new .safetensors file.")],
    base: Annotated[
        Path | None, typer.Option(help="The pre-trained model that an adapter is added to.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces what is there.")] = False,
) -> None:
    """Writes a checkpoint as one safetensors file.

    Reads whatever `mdft inspect` knows: torch files, whole pickled modules, shards, folders of
    transformers and open_clip, LoRA adapters with --base, heads. Names stay as they are, and what
    the source says about its activation and preprocessing is kept.

    Example: mdft convert checkpoints/ViT-B-32/MNIST/finetuned.pt models/mnist.safetensors
    """
    from mdft_fast.checkpoints import convert as write

    check_free(target, overwrite)
    state = write(source, target, base=base, overwrite=overwrite)
    say(f"{state.format}: {len(state.tensors)} tensors")
    for name, why in state.left_out.items():
        say(f"left out: {name}: {why}")
    say(f"wrote {target}")
