# SPDX-License-Identifier: Apache-2.0
"""Writes checkpoints the way the libraries write them, small, and pickles that attack."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 16
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


class Call:
    """Pickles as a call of anything, and maybe a state."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def same(one: Any, other: Any) -> bool:
    """Says whether two mappings hold the same tensors, bit for bit."""
    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def tiny_clip(quick_gelu: bool = True, seed: int = 0) -> nn.Module:
    """A whole CLIP model of open_clip, image and text tower."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(12, dict(VISION), dict(TEXT), quick_gelu=quick_gelu).eval()
        for parameter in model.parameters():  # proj and biases too
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


@contextlib.contextmanager
def task_vectors_code() -> Iterator[types.ModuleType]:
    """Puts stand-ins of the published code at ``src.modeling``, for the time of a save."""
    module = types.ModuleType("src.modeling")

    class ImageEncoder(nn.Module):
        def __init__(self, model: nn.Module, transform: Any) -> None:
            super().__init__()
            self.model, self.train_preprocess, self.val_preprocess = model, transform, transform
            if hasattr(self.model, "transformer"):
                delattr(self.model, "transformer")

    class ClassificationHead(nn.Linear):
        def __init__(self, normalize: bool, weight: Tensor, bias: Tensor | None = None) -> None:
            super().__init__(weight.shape[1], weight.shape[0])
            self.normalize = normalize
            self.weight = nn.Parameter(weight.clone())
            self.bias = nn.Parameter(torch.zeros_like(self.bias) if bias is None else bias)

    for kind in (ImageEncoder, ClassificationHead):
        kind.__module__, kind.__qualname__ = "src.modeling", kind.__name__
        setattr(module, kind.__name__, kind)
    sys.modules["src"], sys.modules["src.modeling"] = types.ModuleType("src"), module
    try:
        yield module
    finally:
        del sys.modules["src"], sys.modules["src.modeling"]


def clip_transform(size: int = SIZE) -> Any:
    """CLIP's evaluation transform as task_vectors pickles it."""
    from open_clip.transform import _convert_to_rgb
    from torchvision import transforms as T

    mode = T.InterpolationMode.BICUBIC
    steps = [T.Resize(size, interpolation=mode), T.CenterCrop((size, size)), _convert_to_rgb]
    return T.Compose([*steps, T.ToTensor(), T.Normalize(mean=MEAN, std=STD)])


def save_encoder(
    path: Path, model: nn.Module, *, legacy: bool = False, size: int = SIZE, poison: Any = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with task_vectors_code() as code:
        encoder = code.ImageEncoder(copy.deepcopy(model), clip_transform(size))
        encoder.poison = poison
        torch.save(encoder, path, _use_new_zipfile_serialization=not legacy)


def save_head(path: Path, weight: Tensor, normalize: bool = True, legacy: bool = False) -> None:
    with task_vectors_code() as code:
        head = code.ClassificationHead(normalize, weight)
        torch.save(head, path, _use_new_zipfile_serialization=not legacy)


def torch_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Writes a torch zip around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
    return path


def torch_legacy(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Writes a legacy torch file around any pickle; storages are float32."""
    out = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(value, out, protocol=2)
    out.write(data)
    pickle.dump(sorted(storages or {}), out, protocol=2)
    for key in sorted(storages or {}):
        content = (storages or {})[key]
        out.write(struct.pack("<q", len(content) // 4) + content)
    path.write_bytes(out.getvalue())
    return path


WRAPPINGS = {"zip": torch_zip, "legacy": torch_legacy}
