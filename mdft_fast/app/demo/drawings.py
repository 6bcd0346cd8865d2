# SPDX-License-Identifier: Apache-2.0
"""What the demo's tasks show: one function a kind of picture, from labels to images."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mdft_fast.app.demo.glyphs import (
    SIZE,
    Pose,
    Style,
    choose,
    glyph_bank,
    ink,
    pixel_grid,
    place,
    posed_grid,
    soft_step,
    uniform,
)

UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GLYPHS = (
    "αβγδεζηθλμξπρσφχψωΓΔΘΛΞΠΣΦΨΩ"
    "БДЖЗИЛУЦЧШЭЮЯ"
    "∀∂∃∇∈∋∓√∝∞∠∧∨∩∪∫∼≈≠≡≤≥⊂⊃⊆⊇⊕⊗⊥"
    "←↑→↓↔↕⇐⇒⇔"
    "0123456789?!&@#$%§£¥©*+=<>"
)
TURNABLE = "ABCDEFGJKLMPQRTUVWY"  # letters that differ from themselves upside down
ALL_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol"),
)
TOLD_APART = (  # fonts of the task "fonts"
    *("DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("STIXGeneral", "STIXGeneralItalic", "cmtt10", "cmss10"),
)
TEXTURES = (
    *("stripes", "checks", "dots", "rings", "waves", "bricks"),
    *("grid", "zigzag", "clouds", "streaks", "triangles", "spokes"),
)
SHAPES = ("disc", "triangle", "square", "star", "cross", "crescent")
HUES = {"red": (0.4, -0.25, -0.25), "green": (-0.25, 0.35, -0.25), "blue": (-0.25, -0.1, 0.45)}

Draw = Callable[[Tensor, Style, Pose, Generator], Tensor]


@lru_cache(maxsize=4)
def _bank(characters: str, fonts: tuple[str, ...]) -> Tensor:
    return glyph_bank(characters, fonts)


def draw_characters(characters: str) -> Draw:
    """Makes a drawing: the label says which character, in any of ``ALL_FONTS``."""

    def draw(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
        fonts = choose(generator, len(labels), len(ALL_FONTS))
        cells = _bank(characters, ALL_FONTS)[fonts, labels]
        return ink(place(cells, pose, generator), style, generator)

    return draw


def draw_fonts(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
    """Draws a capital letter; the label says in which font."""
    letters = choose(generator, len(labels), len(UPPER))
    cells = _bank(UPPER, TOLD_APART)[labels, letters]
    return ink(place(cells, pose, generator), style, generator)


def draw_turned(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
    """Draws a letter; the label says by how many quarter turns to the right it is rotated."""
    n = len(labels)
    letters, fonts = choose(generator, n, len(TURNABLE)), choose(generator, n, len(ALL_FONTS))
    cells = _bank(TURNABLE, ALL_FONTS)[fonts, letters]
    for quarter in range(1, 4):
        turned = torch.rot90(cells, -quarter, (1, 2))
        cells = torch.where((labels == quarter)[:, None, None], turned, cells)
    return ink(place(cells, pose, generator), style, generator)


def draw_shapes(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
    """Draws a shape; the label is its index times three, plus that of its color."""
    u, v = posed_grid(len(labels), pose, generator)
    radius, angle = (u**2 + v**2).sqrt(), torch.atan2(u, -v)

    def regular(sides: int) -> Tensor:
        sector = angle.remainder(2 * math.pi / sides) - math.pi / sides
        return 0.65 * math.cos(math.pi / sides) - radius * sector.cos()

    sector = (angle.remainder(2 * math.pi / 5) - math.pi / 5).abs() / (math.pi / 5)
    a, b = u.abs(), v.abs()
    cross = torch.maximum(torch.minimum(0.2 - a, 0.62 - b), torch.minimum(0.2 - b, 0.62 - a))
    crescent = torch.minimum(0.6 - radius, ((u - 0.3) ** 2 + v**2).sqrt() - 0.48)
    star = 0.28 + 0.4 * sector - radius
    forms = (0.55 - radius, regular(3) + 0.08, regular(4), star, cross, crescent)
    kind = labels // len(HUES)
    distance = torch.stack(forms)[kind, torch.arange(len(labels), device="cpu")]
    hue = torch.tensor(tuple(HUES.values()), device="cpu")[labels % len(HUES)]
    return ink(soft_step(distance), style, generator, hue)


def draw_textures(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
    """Fills the image with a texture of random direction and fineness; the label says which."""
    n = len(labels)
    u, v = posed_grid(n, pose, generator)
    f = uniform(generator, n, 1, 1, low=6.5, high=11.0)
    x, y = u * f, v * f
    radius, angle = (u**2 + v**2).sqrt(), torch.atan2(u, v)
    smooth = torch.randn(n, 2, SIZE, SIZE, generator=generator, dtype=torch.float32, device="cpu")
    clouds = F.avg_pool2d(smooth[:, :1], 5, stride=1, padding=2)[:, 0] * 5
    streaks = F.avg_pool2d(smooth[:, 1:], (1, 11), stride=1, padding=(0, 5))[:, 0] * 3
    brick = x + math.pi / 2 * torch.sign(y.sin())
    fold = (x.remainder(2 * math.pi) - math.pi).abs()
    fields = (
        x.sin(),
        x.sin() * y.sin() * 2,
        x.sin() + y.sin() - 1.0,
        (radius * f * 1.2).sin(),
        (x + 1.3 * (y * 0.7).sin()).sin(),
        torch.minimum((y * 2).cos().abs(), (brick).cos().abs()) * 3 - 0.7,
        torch.maximum(x.cos(), y.cos()) - 0.75,
        (y + fold).sin(),
        clouds,
        streaks,
        x.sin() + (x / 2 + y * 0.866).sin() + (x / 2 - y * 0.866).sin(),
        (angle * 6).sin(),
    )
    field = torch.stack(fields)[labels, torch.arange(n, device="cpu")]
    return ink((field * 2 + 0.5).clamp(0, 1), style, generator)


def draw_counts(labels: Tensor, style: Style, pose: Pose, generator: Generator) -> Tensor:
    """Draws dots, one more than the label; pose is not used."""
    n, x, y = len(labels), *pixel_grid()
    cells = uniform(generator, n, 16).argsort(1)  # dots lie in distinct cells of a 4 x 4 grid
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.float32, device="cpu")
    for dot in range(int(labels.max()) + 1 if n else 0):
        jitter = uniform(generator, 2, n, low=-0.08, high=0.08)
        cx = ((cells[:, dot] % 4) * 0.5 - 0.75 + jitter[0])[:, None, None]
        cy = ((cells[:, dot] // 4) * 0.5 - 0.75 + jitter[1])[:, None, None]
        size = uniform(generator, n, 1, 1, low=0.11, high=0.17)
        disc = soft_step(size - ((x - cx) ** 2 + (y - cy) ** 2).sqrt())
        masks = torch.maximum(masks, disc * (labels >= dot)[:, None, None])
    return ink(masks, style, generator)
