# SPDX-License-Identifier: Apache-2.0
"""docs/recipes.md holds the tables that the sections make: ``python scripts/keys_page.py``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from pydantic import ValidationError

from mdft_fast.app.recipe import PRESETS, Recipe
from mdft_fast.app.recipe.dataclass_sections import DataclassSection, filled_from
from mdft_fast.app.recipe.error_lines import recipe_error
from mdft_fast.errors import MdftError
from mdft_fast.options import check
from tests.scripts import script

keys_page = script("scripts/keys_page.py")


def test_the_page_is_what_the_sections_say() -> None:
    text = keys_page.PAGE.read_text(encoding="utf-8")
    assert keys_page.page(text) == text, "run: python scripts/keys_page.py"


def test_every_key_has_a_meaning() -> None:
    silent = [key for key, section, name in keys_page.keys_of(Recipe) if not section.words(name)]
    assert not silent
    assert set(keys_page._MORE) <= {key for key, *_ in keys_page.keys_of(Recipe)}
    assert next(iter(PRESETS)) == Recipe.model_fields["preset"].default


@dataclasses.dataclass(frozen=True)
class Inner:
    """Nested.

    Attributes:
        rate: how fast.
    """

    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Ties:
    """A method.

    Attributes:
        share: what is kept.
        order: which goes first. Not on the first line.
        depths: of
            the layers.
        inner: more.
    """

    share: Annotated[float, Interval(gt=0, le=1)]
    order: Literal["random", "depth"] = "depth"
    depths: tuple[int, ...] = ()
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        check(self, "ties")


@filled_from(Inner)
class InnerSection(DataclassSection):
    rate: float


@filled_from(Ties)
class TiesSection(DataclassSection):
    share: float
    order: str
    depths: tuple[int, ...]
    inner: InnerSection


def test_any_dataclass_of_options_becomes_a_section() -> None:
    section = TiesSection
    made = section.model_validate({"share": 1, "depths": [1, 2], "inner": {"rate": 2}})
    assert made.build() == Ties(1.0, depths=(1, 2), inner=Inner(2.0))
    assert section.words("order") == "which goes first. Not on the first line"
    assert section.words("depths") == "of the layers"
    assert section.choices("order") == ("random", "depth")
    assert [section.model_fields[key].is_required() for key in ("share", "order")] == [True, False]
    assert section.model_fields["inner"].default.build() == Inner()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"share": 0}, "share: must be above 0, got 0"),
        ({"share": 1, "order": "depht"}, "order: must be one of ['random', 'depth'], got 'depht'; "
             "did you mean 'depth'?"),
        ({"share": 1, "depths": [1.5]}, "depths[0]: must be a whole number, got 1.5"),
        ({"share": 1, "inner": {"rat": 1}}, "inner.rat: unknown key; did you mean 'rate'?"),
    ],
)  # fmt: skip
def test_its_error_lines(values: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TiesSection.model_validate(values)
    assert recipe_error("ties", caught.value, TiesSection).problems == (line,)


def test_the_dataclass_checks_itself_in_the_same_places() -> None:
    for values, message in (
        ({"share": 0}, r"ties.share: must be in \(0, 1\], got 0"),
        ({"share": float("nan")}, r"ties.share: must be in \(0, 1\], got nan"),
        ({"share": True}, "ties.share: must be .*, got True"),
        ({"share": None}, "ties.share: must be .*, got None"),
        ({"share": 1, "order": "depht"}, "ties.order: must be one of .*; did you mean 'depth'"),
    ):
        with pytest.raises(MdftError, match=message):
            Ties(**values)  # type: ignore[arg-type]
