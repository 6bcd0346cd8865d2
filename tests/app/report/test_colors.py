# SPDX-License-Identifier: Apache-2.0
"""The page's colors: contrast in both schemes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mdft_fast.app import report
from mdft_fast.app.report.colors import DIVERGING, SCALES, contrast, stylesheet


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", css))


def test_text_and_marks_have_contrast_in_both_schemes() -> None:
    css = (Path(report.__file__).parent / "templates" / "page.css").read_text()
    light, _, rest = css.partition("@media screen and (prefers-color-scheme:dark)")
    dark = variables(rest.partition("}}")[0])
    assert variables(light).keys() == dark.keys()
    for scheme in (variables(light), dark):
        for text in ("ink", "soft", "link"):
            for ground in ("page", "raised"):
                assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        assert contrast(scheme["ink"], scheme["warn"]) >= 4.5
        for mark in ("blue", "orange", "vermilion", "wine", "gray", "edge", "warn-edge"):
            assert contrast(scheme[mark], scheme["page"]) >= 3, mark


def test_numbers_on_colored_fields_have_contrast() -> None:
    rules = re.findall(r"background:(#\w+);fill:#\w+;color:(#\w+)", stylesheet())
    assert len(rules) == 2 * sum(scale.steps for scale in SCALES)
    for ground, text in rules:
        assert contrast(ground, text) >= 4.5, (ground, text)


def test_the_middle_of_the_scale_is_the_page_and_the_ends_stand_out() -> None:
    for anchors, ground in ((DIVERGING.light, "#ffffff"), (DIVERGING.dark, "#14161a")):
        contrasts = [contrast(color, ground) for color in anchors]
        assert min(contrasts) == contrasts[5] < 1.4
        assert contrasts[:6] == sorted(contrasts[:6], reverse=True)
        assert contrasts[5:] == sorted(contrasts[5:])


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
