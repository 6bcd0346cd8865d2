# SPDX-License-Identifier: Apache-2.0
"""The page in a browser without a screen: nothing loaded, nothing complained of, all readable."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdft_fast.app.report import page
from tests.app.report.conftest import make_metrics, make_result

api = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium (apt-get install chromium)")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been said on the console, nothing been asked."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(html: str | None = None, width: int = 1200, **options: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(page(make_result(), make_metrics()) if html is None else html, "utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        opened = contexts[-1].new_page()
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("dialog", lambda dialog: said.append(dialog.message))
        opened.goto(file.as_uri())
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.endswith("/report.html")] == []


def tip(opened: Any) -> str:
    found = opened.locator("#tip.on")
    found.wait_for(state="visible", timeout=2000)
    return str(found.text_content())


def value(row: int, column: int) -> str:
    return f"{make_result()['coefficients']['construct'][row][column]:.3f}"


HEAT = "table.grid[aria-labelledby=lambda] tbody"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1440])
def test_it_fits_the_window(show: Open, width: int, scheme: str) -> None:
    opened = show(width=width, color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")


def test_long_names_fit_a_phone(show: Open) -> None:
    result = make_result()
    long = "a_name_without_any_place_to_break_" * 4
    result["pool"]["tasks"][3]["name"] = long
    for by_task in result["accuracy"].values():
        by_task[long] = by_task.pop("mnist")
    result["confusion"]["dtd10"]["classes"] = [f"{long}{i}" for i in range(10)]
    opened = show(page(result, make_metrics()), width=360)
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_heat_map_tells_task_layer_and_value_under_the_mouse(show: Open) -> None:
    opened = show()
    opened.locator(f"{HEAT} tr").nth(2).locator("td").nth(40).hover()
    name = make_result()["columns"][40]
    assert tip(opened) == f"aid30 · {name} · λ = {value(2, 40)}"
    opened.keyboard.press("Escape")
    assert opened.locator("#tip.on").count() == 0


def test_the_heat_map_tells_them_from_the_keyboard(show: Open) -> None:
    opened = show()
    cell = opened.locator(f"{HEAT} td[tabindex='0']")
    assert cell.count() == 1, "one stop for the tab key"
    cell.focus()
    assert tip(opened) == f"omniglot242 · cls_token · λ = {value(0, 0)}"
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        opened.keyboard.press(key)
    assert tip(opened) == f"gtsrb · patch_embed.proj.weight · λ = {value(1, 2)}"
    opened.keyboard.press("End")
    assert tip(opened) == f"gtsrb · fc_norm.bias · λ = {value(1, 151)}"
    opened.keyboard.press("ArrowRight")
    assert "fc_norm.bias" in tip(opened), "the last column stays"
    box = opened.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1200


def test_the_heat_map_tells_them_at_a_touch(show: Open) -> None:
    opened = show(width=360, has_touch=True, is_mobile=True)
    opened.locator(f"{HEAT} tr").nth(4).locator("td").nth(7).tap()
    assert tip(opened).startswith("fashion_mnist · blocks.0.attn.qkv.bias · λ = ")


def test_charts_and_maps_tell_their_values(show: Open) -> None:
    opened = show()
    chart = opened.locator("#stage1 .panel svg").nth(1)
    chart.hover()
    assert re.match(r"step \d+: loss [\d.]+, smoothed [\d.]+$", tip(opened))
    chart.focus()
    opened.keyboard.press("End")
    assert tip(opened).startswith("step 100: ")
    opened.keyboard.press("Home")
    assert tip(opened).startswith("step 1: ")
    opened.locator("#filter .panel svg").nth(0).focus()
    assert re.match(r"0 to 0\.025: \d+ samples$", tip(opened))
    field = opened.locator("#confusion svg.map, #confusion .map svg").first
    field.focus()
    first = tip(opened)
    assert re.match(r"omniglot242 0 … omniglot242 4 → omniglot242 .*: \d+ of \d+$", first)
    opened.keyboard.press("ArrowRight")
    assert tip(opened) != first
    opened.keyboard.press("ArrowLeft")
    assert tip(opened) == first
    opened.locator("#accuracy svg[data-tip]").first.hover()
    assert tip(opened).startswith("omniglot242, pre-trained: 16.0 % (")
    opened.locator("h1").hover()
    assert opened.locator("#tip.on").count() == 0


def test_the_confusion_tells_label_and_prediction(show: Open) -> None:
    opened = show()
    part = opened.locator("#confusion details").nth(3)
    part.locator("summary").click()
    part.locator("tbody tr").nth(1).locator("td").nth(1).hover()
    assert re.match(r"mnist 1 → mnist 1: \d+ of \d+$", tip(opened))


def test_strangers_names_run_nothing(show: Open) -> None:
    result = make_result()
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    result["columns"] = [f"{evil}{i}" for i in range(152)]
    result["confusion"]["dtd10"]["classes"] = [evil] * 10
    result["warnings"] = [evil]
    opened = show(page(result, make_metrics()))
    opened.locator(f"{HEAT} td").first.hover()
    assert f"omniglot242 · {evil}0 · λ" in tip(opened)
    assert opened.locator("img").count() == 0


def test_without_script_the_values_are_still_there(show: Open) -> None:
    opened = show(java_script_enabled=False)
    assert opened.locator(f"{HEAT} td").nth(5).text_content() == value(0, 5)
    assert opened.locator("#verdict").inner_text().startswith("In short")


def test_it_prints_light_whole_and_within_the_paper(show: Open) -> None:
    opened = show(width=690, color_scheme="dark")  # A4 less its margins
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="print")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 690
    assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 33)"
    assert opened.locator("details:not([open])").count() == 0
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details:not([open])").count() > 0
    paper = opened.pdf(format="A4")
    assert paper[:5] == b"%PDF-"
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 30
