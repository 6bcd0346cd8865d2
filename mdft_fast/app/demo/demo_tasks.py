# SPDX-License-Identifier: Apache-2.0
"""The demo's tasks: classes, style and pose of each; their splits; the base's mixture."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import mdft_fast.app.demo.drawings as drawings
from mdft_fast.app.demo.drawings import Draw
from mdft_fast.app.demo.glyphs import SIZE, Pose, Style
from mdft_fast.errors import need

PLAIN = Style((0.7, 1.0), 0.1, 0.02, 0, 0.04)  # of the base's mixture
PLAIN_POSE = Pose((0.85, 1.05), 5, 0.05)


@dataclass(frozen=True)
class DemoTask:
    """One task: ``draw(labels, style, pose, generator)`` gives uint8 images ``[n, S, S, 3]``."""

    name: str
    class_names: tuple[str, ...]
    info: str
    draw: Draw | None = None  # None: the images are scikit-learn's digits
    style: Style = PLAIN
    pose: Pose = PLAIN_POSE
    mixture_share: float = 0.0  # of the images that the base is trained on

    def images(self, labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
        """Draws one image a label, ``[n, S, S, 3]`` uint8, a thousand at a time."""
        if self.draw is None:
            raise ValueError(f"images: the task must be procedural, got {self.name}")
        parts = [self.draw(part, style, pose, generator) for part in labels.split(1000)]
        return torch.cat(parts)

    @property
    def source(self) -> str:
        """Where the images come from."""
        return "procedural" if self.draw else "sklearn.datasets.load_digits"


TASKS: tuple[DemoTask, ...] = (
    DemoTask("digits", tuple("0123456789"), "handwritten digits, 8 x 8 enlarged to 32 x 32"),
    DemoTask(
        "glyphs",
        tuple(drawings.GLYPHS),
        "dark symbols of three alphabets and mathematics, in 12 fonts",
        drawings.draw_characters(drawings.GLYPHS),
        Style((0.55, 0.95), chroma=0.1, clouds=0.05, noise=0.06, polarity=-1),
        Pose((0.75, 1.0), turn_degrees=8, shift=0.06, shear=0.15),
        mixture_share=0.5,
    ),
    DemoTask(
        "letters",
        tuple(drawings.UPPER),
        "colored capital letters on clutter, in 12 fonts",
        drawings.draw_characters(drawings.UPPER),
        Style((0.5, 0.9), chroma=0.25, clouds=0.1, strokes=2, noise=0.04),
        Pose((0.75, 1.05), turn_degrees=10, shift=0.06, shear=0.15),
        mixture_share=0.2,
    ),
    DemoTask(
        "shapes",
        tuple(f"{hue} {shape}" for shape in drawings.SHAPES for hue in drawings.HUES),
        "six shapes in three colors, on clutter of like brightness",
        drawings.draw_shapes,
        Style((0.0, 0.3), chroma=0.1, clouds=0.08, strokes=1, noise=0.05),
        Pose((0.8, 1.1), turn_degrees=20, shift=0.07, shear=0.1),
        mixture_share=0.15,
    ),
    DemoTask(
        "textures",
        drawings.TEXTURES,
        "procedural textures in any direction, noisy",
        drawings.draw_textures,
        Style((0.3, 0.7), chroma=0.2, clouds=0.05, noise=0.08),
        Pose((0.85, 1.2), turn_degrees=180, shift=1.0),
        mixture_share=0.15,
    ),
    DemoTask(
        "fonts",
        drawings.TOLD_APART,
        "which font a capital letter is set in",
        drawings.draw_fonts,
        Style((0.6, 1.0), chroma=0.15, noise=0.03, polarity=1),
        Pose((0.85, 1.1), turn_degrees=4, shift=0.05),
    ),
    DemoTask(
        "counts",
        tuple(str(count) for count in range(1, 7)),
        "how many dots there are",
        drawings.draw_counts,
        Style((0.4, 0.9), chroma=0.3, clouds=0.08, noise=0.08),
    ),
    DemoTask(
        "turns",
        ("upright", "right", "down", "left"),
        "which way up a letter stands",
        drawings.draw_turned,
        Style((0.5, 0.9), chroma=0.3, clouds=0.04, noise=0.05),
        Pose((0.8, 1.05), turn_degrees=8, shift=0.05),
    ),
)


def balanced_labels(n: int, classes: int, generator: Generator) -> Tensor:
    """Returns ``[n]`` shuffled labels; class counts differ by at most one."""
    return (
        torch.arange(n, device="cpu")[torch.randperm(n, generator=generator, device="cpu")]
        % classes
    )


def split_images(task: DemoTask, split: str, train: int, test: int) -> tuple[Tensor, Tensor]:
    """Makes one split of one task in the task's own style: the same on every call.

    Args:
        task: one of ``TASKS``.
        split: ``"train"`` or ``"test"``.
        train: images of the training split; digits has no more than 1,797 - ``test``.
        test: images of the test split.

    Returns:
        Shuffled images ``[n, S, S, 3]`` uint8 and labels ``[n]`` int64.
    """
    if task.draw is None:
        images, labels = sklearn_digits()
        order = torch.randperm(len(labels), generator=_seeded(task, "order"), device="cpu")
        rows = order[:test] if split == "test" else order[test:][:train]
        return images[rows], labels[rows]
    generator = _seeded(task, split)
    n = test if split == "test" else train
    labels = balanced_labels(n, len(task.class_names), generator)
    return task.images(labels, task.style, task.pose, generator), labels


def _seeded(task: DemoTask, split: str) -> Generator:
    return Generator("cpu").manual_seed(zlib.crc32(f"{task.name}/{split}".encode()))


def sklearn_digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's 1,797 digits, enlarged to ``[1797, S, S, 3]`` uint8, and labels."""
    bunch = need("sklearn.datasets", "demo").load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 16
    large = F.interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
    images = (large.clamp(0, 1) * 255).round().to(torch.uint8)
    labels = torch.tensor(bunch.target, dtype=torch.int64, device="cpu")
    return images[..., None].expand(-1, -1, -1, 3).contiguous(), labels


def draw_plain(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draws the mixture for the base: plain style, labels numbered through over its tasks."""
    images, labels, first = [], [], 0
    for task in TASKS:
        if task.draw is None or not task.mixture_share:
            continue
        drawn = balanced_labels(round(n * task.mixture_share), len(task.class_names), generator)
        images.append(task.images(drawn, PLAIN, PLAIN_POSE, generator))
        labels.append(drawn + first)
        first += len(task.class_names)
    order = torch.randperm(sum(map(len, labels)), generator=generator, device="cpu")
    return torch.cat(images)[order], torch.cat(labels)[order]
