# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that a recipe holds, each with a message that says what was wanted."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from mdft_fast.errors import nearest
from mdft_fast.pool import TASK_NAME_FORM, is_task_name


class Section(BaseModel):
    """A mapping of the recipe: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def shown(value: object) -> str:
    """Returns a value as an error message shows it: short, and strings in quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def wrong(wanted: str, got: object, hint: str = "") -> PydanticCustomError:
    """Returns the error ``must be <wanted>, got <got><hint>``."""
    return problem(f"must be {wanted}, got {shown(got)}{hint}")


def problem(message: str) -> PydanticCustomError:
    """Returns an error that pydantic reports with exactly this message."""
    return PydanticCustomError("recipe", "{message}", {"message": message})


def choice(*now: str | int, later: tuple[str, ...] = ()) -> BeforeValidator:
    """Returns a check that a value is one of ``now``; those of ``later`` are named as not yet."""

    def check(value: Any) -> Any:
        if any(value == known and type(value) is type(known) for known in now):
            return value
        if value in later:
            raise problem(f"{value!r} isn't there yet, only {list(now)} so far")
        wanted = f"one of {list(now)}" if len(now) > 1 else shown(now[0])
        raise wrong(wanted, value, nearest(str(value), map(str, now)))

    return BeforeValidator(check)


def _one_or_many(
    words: str, count: int | None = None, kinds: tuple[type, ...] = (int, float)
) -> BeforeValidator:
    def check(value: Any) -> Any:
        items = value if isinstance(value, (list, tuple)) else [value]
        good = bool(items) and all(type(v) in kinds and math.isfinite(v) for v in items)
        if not good or (items is value and count not in (None, len(items))):
            raise wrong(f"one {'whole ' * (float not in kinds)}number or {words}", value)
        return tuple(value) if isinstance(value, list) else value

    return BeforeValidator(check)


def _located(value: Any, info: ValidationInfo) -> Any:
    """Resolves a path against the recipe's folder; ``..`` goes up by name, links are kept."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise wrong("a path", value)
    folder = (info.context or {}).get("folder", Path.cwd())
    return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))


def _device(value: Any) -> Any:
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return value
    raise wrong("auto, cpu, cuda or cuda:<number>", value)


def _task_name(value: Any) -> Any:
    if value == "average":
        raise problem("'average' is the mean over tasks in every result; choose another name")
    if is_task_name(value):
        return value
    raise wrong(f"text of {TASK_NAME_FORM} (quote a bare number)", value)


def _which_tasks(value: Any) -> Any:
    if value in ("all", "none"):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise wrong("'all', 'none' or a list of task names", value)


def _name_or_list(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if isinstance(items, (list, tuple)) and items and all(i and isinstance(i, str) for i in items):
        return value if isinstance(value, str) else tuple(value)
    raise wrong("a data set's name or a list of text", value)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)


def _bytes(value: Any) -> Any:
    """Reads 4GB, 4G, 500 MiB or a number of bytes."""
    if isinstance(value, str) and (parts := _SIZE.fullmatch(value)):
        number, unit, binary = parts.groups()
        power = " KMGT".index(unit.upper()) if unit else 0
        value = int(float(number) * (1024 if binary else 1000) ** power)
    if type(value) is not int or value <= 0:
        raise wrong("a size such as 4GB or 500MiB, or a number of bytes", value)
    return value


FilePath = Annotated[Path, BeforeValidator(_located)]
Device = Annotated[str, BeforeValidator(_device)]
TaskName = Annotated[str, BeforeValidator(_task_name)]
WhichTasks = Annotated[Literal["all", "none"] | tuple[str, ...], BeforeValidator(_which_tasks)]
NameOrList = Annotated[str | tuple[str, ...], BeforeValidator(_name_or_list)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PerChannel = Annotated[Number | tuple[Number, ...], _one_or_many("three, one a channel", 3)]
PerVector = Annotated[Number | tuple[Number, ...], _one_or_many("a list, one a task")]
PixelSize = Annotated[int | tuple[int, int], _one_or_many("two, height and width", 2, (int,))]
Bytes = Annotated[int, BeforeValidator(_bytes)]
Text = Annotated[str, Field(min_length=1)]
