# SPDX-License-Identifier: Apache-2.0
"""Draws the demo's images: glyphs of matplotlib's fonts, shapes, textures, dots.

Everything is drawn as a batch of coverage masks ``[n, S, S]`` in 0..1 and then inked onto a
background. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mdft_fast.errors import need

SIZE = 32  # pixels a side: 4 x 4 patches of 8
_BANK_SIZE = 48  # glyphs are drawn larger and scaled down when they are placed
_GLYPH_EXTENT = 38  # longer side of a glyph inside its bank cell


@dataclass(frozen=True)
class Style:
    """How a mask becomes an image. All amplitudes are in units of the full range 0..1."""

    contrast: tuple[float, float] = (0.9, 1.0)  # luminance of ink minus background
    chroma: float = 0.0  # amplitude of the random colors of ink and background
    clouds: float = 0.0  # amplitude of a slowly varying background
    strokes: int = 0  # distracting line segments behind the ink
    noise: float = 0.02  # standard deviation of the pixel noise
    polarity: int = 0  # +1 light ink, -1 dark ink, 0 either


@dataclass(frozen=True)
class Pose:
    """Where a mask lies: ranges of a random similarity transform."""

    scale: tuple[float, float] = (0.95, 1.05)
    turn_degrees: float = 4.0  # rotation is uniform in +- this
    shift: float = 0.04  # of the image's side, uniform in +- this
    shear: float = 0.0


def uniform(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draws float32 numbers from ``[low, high)``."""
    return low + (high - low) * torch.rand(
        shape, generator=generator, dtype=torch.float32, device="cpu"
    )


def choose(generator: Generator, n: int, choices: int) -> Tensor:
    """Draws ``n`` indices below ``choices``."""
    return torch.randint(choices, (n,), generator=generator, device="cpu")


def pixel_grid() -> tuple[Tensor, Tensor]:
    """Returns x (to the right) and y (down) of the pixel centers, each ``[S, S]`` in -1..1."""
    line = (torch.arange(SIZE, dtype=torch.float32, device="cpu") + 0.5) * (2 / SIZE) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def posed_grid(n: int, pose: Pose, generator: Generator) -> tuple[Tensor, Tensor]:
    """Returns the pixel centers as seen from ``n`` randomly posed objects, each ``[n, S, S]``."""
    scale = uniform(generator, n, 1, 1, low=pose.scale[0], high=pose.scale[1])
    turn = uniform(generator, n, 1, 1, low=-1, high=1) * math.radians(pose.turn_degrees)
    shear = uniform(generator, n, 1, 1, low=-pose.shear, high=pose.shear)
    shift = uniform(generator, 2, n, 1, 1, low=-2 * pose.shift, high=2 * pose.shift)
    x, y = pixel_grid()
    x, y = x - shift[0], y - shift[1]
    u = (x * turn.cos() + y * turn.sin()) / scale
    v = (y * turn.cos() - x * turn.sin()) / scale
    return u + shear * v, v


def glyph_bank(characters: Sequence[str], fonts: Sequence[str]) -> Tensor:
    """Draws every character in every font.

    Returns:
        ``[fonts, characters, 48, 48]`` coverage in 0..1, each glyph centered and scaled so that
        its longer side is 38 pixels.
    """
    folder = Path(need("matplotlib", "demo").get_data_path()) / "fonts" / "ttf"
    bank = torch.zeros(
        len(fonts), len(characters), _BANK_SIZE, _BANK_SIZE, dtype=torch.float32, device="cpu"
    )
    for row, name in enumerate(fonts):
        font = need("matplotlib.ft2font", "demo").FT2Font(str(folder / f"{name}.ttf"))
        font.set_size(64, 72)  # points, dots per inch
        for column, character in enumerate(characters):
            if font.get_char_index(ord(character)) == 0:
                raise ValueError(f"glyph_bank: font {name} must have {character!r}, got no glyph")
            font.set_text(character)
            font.draw_glyphs_to_bitmap(antialiased=True)
            bank[row, column] = _fit(torch.from_numpy(np.array(font.get_image(), np.float32)) / 255)
    return bank


def _fit(glyph: Tensor) -> Tensor:
    """Centers one glyph ``[h, w]`` in a cell of the bank."""
    rows, columns = glyph.amax(1).nonzero()[:, 0], glyph.amax(0).nonzero()[:, 0]
    glyph = glyph[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    factor = _GLYPH_EXTENT / max(glyph.shape)
    h, w = (max(2, round(side * factor)) for side in glyph.shape)
    small = F.interpolate(glyph[None, None], (h, w), mode="bilinear", antialias=True)[0, 0]
    top, left = (_BANK_SIZE - h) // 2, (_BANK_SIZE - w) // 2
    return F.pad(small, (left, _BANK_SIZE - w - left, top, _BANK_SIZE - h - top))


def place(glyphs: Tensor, pose: Pose, generator: Generator) -> Tensor:
    """Poses bank cells ``[n, 48, 48]`` in images; returns masks ``[n, S, S]``."""
    u, v = posed_grid(len(glyphs), pose, generator)
    soft = F.avg_pool2d(glyphs[:, None], 3, stride=1, padding=1)  # scaling down must not alias
    masks = F.grid_sample(soft, torch.stack((u, v), -1), mode="bilinear", align_corners=False)
    return masks[:, 0]


def _colors(n: int, luminance: Tensor, chroma: float, generator: Generator) -> Tensor:
    tint = uniform(generator, n, 3, low=-chroma, high=chroma)
    return luminance + tint - tint.mean(1, keepdim=True)


def _strokes(n: int, generator: Generator) -> Tensor:
    """Masks ``[n, S, S]`` of one line segment each."""
    x, y = pixel_grid()
    ends = uniform(generator, n, 4, 1, 1, low=-1.1, high=1.1)
    ax, ay, bx, by = ends.unbind(1)
    dx, dy = bx - ax, by - ay
    along = ((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2 + 1e-6)
    along = along.clamp(0, 1)
    distance = ((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2).sqrt()
    return soft_step(uniform(generator, n, 1, 1, low=0.03, high=0.1) - distance)


def soft_step(signed_distance: Tensor) -> Tensor:
    """Coverage of a pixel whose center lies this far inside an edge (in half image sides)."""
    return (signed_distance * (SIZE / 2) + 0.5).clamp(0, 1)


def ink(masks: Tensor, style: Style, generator: Generator, hue: Tensor | None = None) -> Tensor:
    """Paints masks onto backgrounds.

    Args:
        masks: ``[n, S, S]`` coverage in 0..1.
        style: contrast, colors and disturbances.
        generator: source of all randomness.
        hue: ``[n, 3]`` offset of the ink's color from gray, or None for random colors.

    Returns:
        ``[n, S, S, 3]`` uint8 images.
    """
    n = len(masks)
    sign = torch.sign(uniform(generator, n, 1) - 0.5) if style.polarity == 0 else style.polarity
    half = uniform(generator, n, 1, low=style.contrast[0], high=style.contrast[1]) / 2 * sign
    back = _colors(n, 0.5 - half, style.chroma, generator)
    front = _colors(n, 0.5 + half, style.chroma if hue is None else 0.0, generator)
    if hue is not None:
        front = front + hue
    image = back[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    if style.clouds:
        coarse = (
            torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float32, device="cpu")
            * style.clouds
        )
        image = image + F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False)
    for _ in range(style.strokes):
        color = back + uniform(generator, n, 3, low=-0.45, high=0.45)
        image = torch.lerp(image, color[:, :, None, None], _strokes(n, generator)[:, None])
    image = torch.lerp(image, front[:, :, None, None], masks[:, None])
    image = (
        image
        + torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float32, device="cpu")
        * style.noise
    )
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
