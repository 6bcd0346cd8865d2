# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that a recipe holds, each with a message that says what was wanted."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from mdft_fast.errors import MdftError, nearest
from mdft_fast.files import expanded
from mdft_fast.options import kind_of, words_of
from mdft_fast.pool import TASK_NAME_FORM, is_task_name


def quoted(value: object) -> str:
    """Returns a value as an error message has it: short, and strings in quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def wrong(wanted: str, got: object, hint: str = "") -> PydanticCustomError:
    """Returns the error ``must be <wanted>, got <got><hint>``."""
    return problem(f"must be {wanted}, got {quoted(got)}{hint}")


def problem(message: str) -> PydanticCustomError:
    """Returns an error that pydantic reports with exactly this message."""
    return PydanticCustomError("recipe", "{message}", {"message": message})


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A check that stands in a key's annotation.

    Attributes:
        words: what a value must be; for the error, and for the page of keys.
        read: from a value to what the recipe holds, None for what is wrong.
        choices: the values there are, where they are few.
    """

    words: str
    read: Callable[[Any], Any]
    choices: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Puts the check before pydantic's own."""
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        held = self.read(value)
        if held is None:
            raise wrong(self.words, value, nearest(str(value), self.choices))
        return held


class Section(BaseModel):
    """A mapping of the recipe: frozen, no unknown keys, no silent conversions.

    What a key means stands in the class docstring's ``Attributes:``, or in the field's description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def words(cls, key: str) -> str:
        """Returns all that is said of a key."""
        return cls.model_fields[key].description or words_of(cls, key)

    @classmethod
    def annotation(cls, key: str) -> Any:
        """Returns a key's annotation, with what stands beside the type."""
        field = cls.model_fields[key]
        whole: Any = field.annotation
        return Annotated[(whole, *field.metadata)] if field.metadata else whole

    @classmethod
    def wanted(cls, key: str) -> Wanted | None:
        """Returns a key's own check, where it has one."""
        checks = (part for part in _beside(cls.annotation(key)) if isinstance(part, Wanted))
        return next(checks, None)

    @classmethod
    def choices(cls, key: str) -> Sequence[Any]:
        """Returns the values that a key may have, where they are few."""
        check = cls.wanted(key)
        return check.choices if check else kind_of(cls.annotation(key)).choices


def _beside(annotation: Any) -> Iterator[Any]:
    """Yields what stands beside the types of an annotation, from outside in."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for inner in get_args(annotation)[:1]:
        yield from _beside(inner)


def choice(*choices: str) -> Wanted:
    """Returns a check for choices that are no ``Literal``, since they are known at run time."""
    return Wanted(
        f"one of {list(choices)}", lambda value: value if value in choices else None, choices
    )


def _one_or_many(
    words: str, count: int | None = None, kinds: tuple[type, ...] = (int, float)
) -> Wanted:
    def read(value: Any) -> Any:
        items = value if isinstance(value, (list, tuple)) else [value]
        good = bool(items) and all(type(v) in kinds and math.isfinite(v) for v in items)
        if not good or (items is value and count not in (None, len(items))):
            return None
        return tuple(value) if isinstance(value, list) else value

    return Wanted(f"one {'whole ' * (float not in kinds)}number or {words}", read)


def located(value: Any, info: ValidationInfo) -> Any:
    """Resolves a path against the recipe's folder; ``..`` goes up by name, links are kept."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise wrong("a path", value)
    folder = (info.context or {}).get("folder", Path.cwd())
    try:
        return Path(os.path.normpath(Path(folder) / expanded(value)))
    except MdftError:
        raise wrong("a path; `~` has no home folder here", value) from None


def _task_name(value: Any) -> Any:
    if value == "average":
        raise problem("'average' is the mean over tasks in every result; choose another name")
    return value if is_task_name(value) else None


_AllOrNone = Literal["all", "none"]


def _which_tasks(value: Any) -> Any:
    if value in get_args(_AllOrNone):
        return value
    is_list = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return tuple(value) if is_list else None


def _name_or_list(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if isinstance(items, (list, tuple)) and items and all(i and isinstance(i, str) for i in items):
        return value if isinstance(value, str) else tuple(value)
    return None


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)


def _bytes(value: Any) -> Any:
    """Reads 4GB, 4G, 500 MiB or a number of bytes."""
    if isinstance(value, str) and (parts := _SIZE.fullmatch(value)):
        number, unit, binary = parts.groups()
        if len(number) > 20:  # more than any machine has
            return None
        power = " KMGT".index(unit.upper()) if unit else 0
        value = int(float(number) * (1024 if binary else 1000) ** power)
    return value if type(value) is int and value > 0 else None


FilePath = Annotated[Path, BeforeValidator(located)]
Device = Annotated[
    str,
    Wanted(
        "auto, cpu, cuda or cuda:<number>",
        lambda value: value if isinstance(value, str) and _DEVICE.fullmatch(value) else None,
    ),
]
TaskName = Annotated[str, Wanted(f"text of {TASK_NAME_FORM} (quote a bare number)", _task_name)]
WhichTasks = Annotated[
    _AllOrNone | tuple[str, ...],
    Wanted("'all', 'none' or a list of task names", _which_tasks),
]
NameOrList = Annotated[
    str | tuple[str, ...], Wanted("a data set's name or a list of text", _name_or_list)
]
PerChannel = Annotated[float | tuple[float, ...], _one_or_many("three, one a channel", 3)]
PixelSize = Annotated[int | tuple[int, int], _one_or_many("two, height and width", 2, (int,))]
Bytes = Annotated[int, Wanted("a size such as 4GB or 500MiB, or a number of bytes", _bytes)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
