# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about how its model must be used, and what contradicts it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mdft_fast.checkpoints.preprocess import CHOICES, LEAST_CROP, Preprocess, edges_before_crop
from mdft_fast.errors import MdftError

# Two spellings of one number agree within this: 0.4815 is 0.48145466. A step of uint8 is 4e-3.
_SAME = 1e-3
_SHARE = 1e-2  # of small ones, such as an epsilon
PIL_FILTERS = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers
_OWN = ("name", "trained_on")  # facts that models of one pool need not share
_LONGEST = 500  # characters of a name or a path
OTHER = "other"  # said, but nothing that is done here: no default may take its place


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """What a checkpoint says about its model; None: it does not say.

    The inputs' are the keys of :class:`~mdft_fast.checkpoints.Preprocess`; ``resize`` and
    ``interpolation`` may also be "other": in a way that is not done here.

    Attributes:
        activation: "quick_gelu", "gelu", "gelu_tanh", or another name as the source has it.
        architecture: timm's name of the model.
        heads: of attention, where all layers have as many.
        norm_eps: of the layers' normalization.
        pooling: timm's name of how tokens become features.
        name: what the model is called where it was loaded from.
        trained_on: what an adapter calls its base.
    """

    activation: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: str | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    architecture: str | None = None
    heads: int | None = None
    norm_eps: float | None = None
    pooling: str | None = None
    name: str | None = None
    trained_on: str | None = None

    def known(self) -> dict[str, Any]:
        """Returns what the source says, as plain JSON values."""
        items = dataclasses.asdict(self).items()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in items if v is not None}

    def preprocess(self) -> dict[str, Any]:
        """Returns what it says of the inputs; "other" is no value of a preprocess."""
        keys = Preprocess.__annotations__
        return {key: value for key, value in self.known().items() if key in keys}

    def to_text(self) -> str:
        """Returns JSON, for the metadata of a safetensors file."""
        return json.dumps(self.known())

    @staticmethod
    def of(values: Mapping[str, Any]) -> SourceFacts:
        """Returns the facts of a mapping of anything; what has not the right form is unknown."""
        return SourceFacts(
            activation=_word(values.get("activation")),
            size=_size(values.get("size")),
            mean=_channels(values.get("mean")),
            std=_channels(values.get("std")),
            resize=_one_of(values.get("resize"), CHOICES["resize"]),
            interpolation=_one_of(values.get("interpolation"), CHOICES["interpolation"]),
            crop_pct=_share(values.get("crop_pct")),
            architecture=_word(values.get("architecture"), _LONGEST),
            heads=_count(values.get("heads")),
            norm_eps=_positive(values.get("norm_eps")),
            pooling=_word(values.get("pooling")),
            name=_word(values.get("name"), _LONGEST),
            trained_on=_word(values.get("trained_on"), _LONGEST),
        )

    @staticmethod
    def of_text(text: str) -> SourceFacts:
        """Reads what :meth:`to_text` wrote; whatever is not that says nothing."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return SourceFacts()
        return SourceFacts.of(values) if isinstance(values, dict) else SourceFacts()


def gather(sources: Iterable[tuple[str, SourceFacts]]) -> tuple[SourceFacts, dict[str, str]]:
    """Returns what all sources together say, and for each fact the label of who said it first.

    Raises:
        MdftError: if two contradict each other; it names both.
    """
    values: dict[str, Any] = {}
    who: dict[str, str] = {}
    for label, facts in sources:
        for key, value in facts.known().items():
            if key in _OWN:
                continue
            if key not in values:
                values[key], who[key] = value, label
            elif not agree(values[key], value):
                raise MdftError(
                    f"{label}: {key} is {value!r}, but {who[key]} says {values[key]!r}; the models "
                    f"of a pool must share one"
                )
    return SourceFacts.of(values), who


def check_preprocess(
    facts: SourceFacts, who: Mapping[str, str], preprocess: Mapping[str, Any]
) -> None:
    """Compares a preprocess mapping, where it has a key, with what the checkpoints say.

    Where they do what is not done here, the mapping must say what is to be done instead.
    """
    for key, fact in facts.preprocess().items():
        if fact == OTHER:
            if preprocess.get(key, OTHER) == OTHER:
                choices = " or ".join(repr(value) for value in CHOICES[key])
                raise MdftError(
                    f"preprocess: {key!r} must be given, {choices}, as {who[key]} says another "
                    f"that is not known here; write preprocess.{key} with what is nearest to it"
                )
        elif key in preprocess and not agree(fact, preprocess[key]):
            raise MdftError(
                f"preprocess: {key!r} must be {fact!r} as {who[key]} says, got {preprocess[key]!r}"
            )


def agree(one: Any, other: Any) -> bool:
    """Says whether two values of a fact are the same: numbers nearly, a scalar for all."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    lists = [list(value) if isinstance(value, Sequence) else [value] for value in (one, other)]
    count = max(map(len, lists))
    a, b = (items * count if len(items) == 1 else items for items in lists)
    return 0 < len(a) == len(b) and all(map(_near, a, b))


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= min(_SAME, _SHARE * max(abs(one), abs(other)))


def resizing(edges: Sequence[int], crop: Sequence[int]) -> dict[str, Any]:
    """Returns ``resize``, and ``crop_pct``, of a resize and then a center crop.

    Args:
        edges: what the shortest edge becomes; or both edges, height first.
        crop: height and width that are cut out.
    """
    whole = list(edges) * (2 // len(edges)) if edges else []
    squash = len(edges) == 2
    if len(whole) == len(crop) == 2 and (squash or crop[0] == crop[1]):
        share = crop[0] / whole[0]
        if edges_before_crop(crop[:1], share) != whole[:1]:
            share = math.nextafter(share, 0)  # rounded up: the edge would be one pixel less
        if LEAST_CROP <= share <= 1 and edges_before_crop(crop, share) == whole:
            return {"resize": "squash" if squash else "shortest", "crop_pct": share}
    return {"resize": OTHER}


def _word(value: Any, longest: int = 40) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= longest else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 10**6 else None


def _positive(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < 1 else None


def _one_of(value: Any, known: tuple[str, ...]) -> str | None:
    if not isinstance(value, str):
        return None
    return value if value in known else OTHER


def _share(value: Any) -> float | None:
    good = type(value) in (int, float) and LEAST_CROP <= value <= 1
    return float(value) if good else None


def edges_of(value: Any) -> list[int]:
    """Reads one or two numbers, and nothing else: == of nested lists takes exponential time."""
    items = value[:3] if isinstance(value, (list, tuple)) else [value]
    good = len(items) <= 2 and all(type(item) is int and 0 < item < 10**6 for item in items)
    return list(items) if good else []


def _size(value: Any) -> tuple[int, int] | None:
    edges = edges_of(value)
    return (edges[0], edges[-1]) if edges else None


def _channels(value: Any) -> tuple[float, ...] | None:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    good = all(type(item) in (int, float) and 0 <= item <= 1 for item in items)  # else 0 to 255
    return tuple(float(item) for item in items) if good and len(items) == 3 else None
