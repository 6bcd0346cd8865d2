# SPDX-License-Identifier: Apache-2.0
"""Colors of the heat maps: classes of a style sheet, so that one page serves light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Color = tuple[float, float, float]


class Scale(NamedTuple):
    """A color scale in steps: anchors from low to high, on a light and on a dark page."""

    prefix: str
    steps: int
    light: tuple[str, ...]
    dark: tuple[str, ...]


# ColorBrewer's PuOr (Brewer and Harrower, colorbrewer2.org, Apache-2.0) on light: orange and purple
# are told apart by all common kinds of color vision. On dark the middle is dark, the ends bright.
DIVERGING = Scale(
    "d",
    41,
    ("#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f7f7f7",
     "#d8daeb", "#b2abd2", "#8073ac", "#542788", "#2d004b"),
    ("#ffd29a", "#f5a94e", "#cc7f24", "#8d5718", "#513618", "#2b2e34",
     "#3b3560", "#584c96", "#7f70c4", "#a99be6", "#d9d0ff"),
)  # fmt: skip
RIGHT = Scale(
    "r", 11, ("#ffffff", "#cfe3f1", "#7fb8dc", "#2b83bd", "#00507f"),
    ("#1b1e23", "#1d3a50", "#22618c", "#4498cf", "#a5d8fb"),
)  # fmt: skip
WRONG = Scale(
    "w", 11, ("#ffffff", "#fbdcc8", "#f3aa7e", "#d9681c", "#8f3d00"),
    ("#1b1e23", "#4b2d1b", "#8a4a1f", "#d97c35", "#ffcb9e"),
)  # fmt: skip
SCALES = (DIVERGING, RIGHT, WRONG)
_INK = ("#000000", "#ffffff")  # of a number on a colored cell: one of them always reaches AA


def level(scale: Scale, share: float) -> str:
    """Returns the class of a value between 0, the lowest anchor, and 1, the highest."""
    return f"{scale.prefix}{round(min(1.0, max(0.0, share)) * (scale.steps - 1))}"


def stylesheet() -> str:
    """Returns the classes of every scale; paper is light."""
    light = "".join(_rules(scale, scale.light) for scale in SCALES)
    dark = "".join(_rules(scale, scale.dark) for scale in SCALES)
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}\n"


def _rules(scale: Scale, anchors: Sequence[str]) -> str:
    colors = [_between(anchors, step / (scale.steps - 1)) for step in range(scale.steps)]
    return "".join(
        f".{scale.prefix}{step}{{background:{color};fill:{color};color:{_ink(color)}}}"
        for step, color in enumerate(colors)
    )


def _between(anchors: Sequence[str], share: float) -> str:
    place = share * (len(anchors) - 1)
    first = min(int(place), len(anchors) - 2)
    low, high = _parse(anchors[first]), _parse(anchors[first + 1])
    mixed = (a + (b - a) * (place - first) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)


def _parse(text: str) -> Color:
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _ink(background: str) -> str:
    return max(_INK, key=lambda ink: contrast(ink, background))


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of two colors, 1 to 21, as WCAG 2.2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _parse(color))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
