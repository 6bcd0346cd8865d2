# SPDX-License-Identifier: Apache-2.0
"""Tells what a path is by looking at its content; a suffix decides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from mdft_fast.errors import MdftError
from mdft_fast.files import regular

Kind = Literal[
    "safetensors", "index", "torch zip", "torch legacy", "adapter", "transformers", "open_clip",
    "pool",
]  # fmt: skip
ADAPTER = "adapter_config.json"
CONFIG = "config.json"
CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = {  # kind of a folder -> files that may hold its weights, the first that is there
    "adapter": ("adapter_model.safetensors", "adapter_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "transformers": (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}  # fmt: skip
_FORMATS = (
    "safetensors (one file, or *.index.json), torch.save (zip or legacy), a transformers or "
    "open_clip folder, a PEFT adapter's folder"
)
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")  # of pickle, in its second byte
_OLD_MAGIC = b"L119547037146038801333356L"  # torch's number in protocols before 2
_OTHERS = {  # first bytes -> what that is
    b"version https://git-lfs": "a git-lfs pointer; the file itself was not downloaded",
    b"<": "a web page or XML, not the file behind a link",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a numpy array",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
}


def sniff(path: Path) -> Kind:
    """Returns what a file or folder is.

    Raises:
        MdftError: if it is not there, or nothing that is read here; it says what it seems to be.
    """
    if path.is_dir():
        return _folder(path)
    size = regular(path).st_size
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:4] == b"PK\x03\x04":
        return "torch zip"
    if (start[:1] == b"\x80" and start[1:2] in _PROTOCOLS) or start.startswith(_OLD_MAGIC):
        return "torch legacy"
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") <= size:
        return "safetensors"
    seems = next((what for first, what in _OTHERS.items() if start.startswith(first)), "")
    if not seems and path.suffix == ".safetensors":  # cut short, most likely: its reader says so
        return "safetensors"
    if not seems and start.lstrip()[:1] == b"{":
        return "index"
    seems = seems or "unknown"
    raise MdftError(
        f"{path}: not a checkpoint that is read here ({size} bytes, {seems}); known: {_FORMATS}"
    )


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MdftError(f"{path}: not readable as JSON: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise MdftError(f"{path}: must be a JSON object, got {type(config).__name__}")
    return config


def weights_of(folder: Path, kind: str) -> tuple[Path, list[Path]]:
    """Returns the file that holds a folder's weights, as its library looks, and others like it."""
    there = [folder / name for name in WEIGHTS[kind] if (folder / name).is_file()]
    if not there:
        raise MdftError(f"{folder}: must hold one of {list(WEIGHTS[kind])}, got none")
    return there[0], there[1:]


def _folder(path: Path) -> Kind:
    if (path / ADAPTER).is_file():
        return "adapter"
    if (path / "pool.json").is_file() and (path / "tau.safetensors").is_file():
        return "pool"
    if (path / CLIP_CONFIG).is_file():
        return "open_clip"
    if any((path / name).is_file() for name in WEIGHTS["transformers"]):
        return "transformers"
    if (path / ".metadata").is_file():
        raise MdftError(
            f"{path}: is a checkpoint of torch.distributed.checkpoint, which is not read; "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes one file of it"
        )
    looked = [ADAPTER, CLIP_CONFIG, *WEIGHTS["transformers"], "*.index.json"]
    if len(list(path.glob("*.index.json"))) == 1:
        return "index"
    raise MdftError(f"{path}: must be a checkpoint's folder, with one of {looked}, got none")
