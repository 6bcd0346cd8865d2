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


def filled_from(config: type, **renamed: str) -> Callable[[type[S]], type[S]]:
    """Gives a section's keys what a dataclass says of its fields: bounds, default and meaning.

    The types in the section's body are for type checkers alone, but for sections in it.

    Args:
        config: the dataclass; keys that are no field of it stay as they are.
        **renamed: key="field" where the recipe has another word.
    """
    known = {option.name: option for option in options(config)}

    def fill(section: type[S]) -> type[S]:
        fields: dict[str, str] = {}
        filled: dict[str, Any] = {}
        for key, declared in section.model_fields.items():
            option = known.get(renamed.get(key, key))
            nested = declared.annotation if _is_section(declared.annotation) else None
            # A section may have the name of a field that is no dataclass, as `filter` has.
            if option and dataclasses.is_dataclass(option.default) == (nested is not None):
                fields[key], filled[key] = option.name, _key(option, nested)
        model: Any = create_model(
            section.__name__, __base__=section, __doc__=section.__doc__,
            __module__=section.__module__, **filled,
        )  # fmt: skip
        model.dataclass, model.fields = config, fields
        return model  # type: ignore[no-any-return]

    return fill


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, DataclassSection)


def _key(option: Option, section: Any) -> Any:
    annotation, default = option.type, option.default
    if section is not None:
        annotation, default = section, section(**dataclasses.asdict(default))
    elif get_origin(annotation) is tuple:
        annotation = Annotated[annotation, Field(strict=False)]  # YAML has lists
    if default is dataclasses.MISSING:
        default = ...
    return annotation, Field(default, description=option.words)
