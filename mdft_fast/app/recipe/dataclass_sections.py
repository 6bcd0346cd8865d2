# SPDX-License-Identifier: Apache-2.0
"""A section of the recipe from a frozen dataclass of options, and back (`mdft_fast.options`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_origin

from pydantic import Field, create_model
from typing_extensions import Self

from mdft_fast.app.recipe.value_types import Section
from mdft_fast.options import Option, options


class DataclassSection(Section):
    """A section whose keys are fields of a dataclass.

    Attributes:
        dataclass: of which.
        fields: key -> field.
    """

    dataclass: ClassVar[type]
    fields: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def default(cls) -> Self:
        """Returns the section that says nothing."""
        return cls.model_validate({})

    def arguments(self) -> dict[str, Any]:
        """Returns the dataclass's fields that this section holds."""
        values = {field: getattr(self, key) for key, field in self.fields.items()}
        return {
            field: value.build() if isinstance(value, DataclassSection) else value
            for field, value in values.items()
        }

    def build(self, **others: Any) -> Any:
        """Returns the dataclass.

        Args:
            **others: fields that the section does not hold.
        """
        return self.dataclass(**self.arguments(), **others)


S = TypeVar("S", bound=DataclassSection)


def section_of(config: type) -> type[DataclassSection]:
    """Returns a section with all fields of a dataclass as its keys."""
    return _filled(
        DataclassSection, config, {option.name: option.name for option in options(config)}
    )


def filled_from(config: type, **renamed: str) -> Callable[[type[S]], type[S]]:
    """Gives a section's keys what a dataclass says of its fields: bounds, default and meaning.

    The types in the section's body are for type checkers alone.

    Args:
        config: the dataclass; keys that are no field of it stay as they are.
        **renamed: key="field" where the recipe has another word.
    """
    known = {option.name: option for option in options(config)}

    def fill(section: type[S]) -> type[S]:
        names = {key: renamed.get(key, key) for key in section.model_fields}
        nested = {key for key in names if _section_in(section, key) is not None}
        return _filled(section, config, {
            key: field for key, field in names.items()
            if field in known and (key in nested) == dataclasses.is_dataclass(known[field].default)
        })  # fmt: skip

    return fill


def _filled(base: type[S], config: type, fields: Mapping[str, str]) -> type[S]:
    known = {option.name: option for option in options(config)}
    model: Any = create_model(
        config.__name__ if base is DataclassSection else base.__name__,
        __base__=base,
        __doc__=config.__doc__ if base is DataclassSection else base.__doc__,
        __module__=base.__module__,
        **{key: _key(known[field], _section_in(base, key)) for key, field in fields.items()},
    )
    model.dataclass, model.fields = config, dict(fields)
    return model  # type: ignore[no-any-return]


def _key(option: Option, section: type[DataclassSection] | None) -> Any:
    annotation, default = option.type, option.default
    if dataclasses.is_dataclass(default):
        annotation = section or section_of(type(default))
        default = annotation(**dataclasses.asdict(default))  # type: ignore[arg-type]
    elif get_origin(annotation) is tuple:
        annotation = Annotated[annotation, Field(strict=False)]  # YAML has lists
    if default is dataclasses.MISSING:
        default = ...
    return annotation, Field(default, description=option.words)


def _section_in(section: type[Section], key: str) -> type[DataclassSection] | None:
    field = section.model_fields.get(key)
    inner: Any = field.annotation if field else None
    if isinstance(inner, type) and issubclass(inner, DataclassSection):
        return inner
    return None
