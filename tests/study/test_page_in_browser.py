"""The page of a report in headless Chromium, at the width of a phone and of a desk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3prl_mtl.cli.main import main
from tests.study.studies import write_study
from tests.study.test_report import SEEDS, TASKS, VALUES

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OVERLAPS = """
() => {
  const found = [];
  const touch = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const check = (elements, what) => {
    const boxes = elements.map(element => element.getBoundingClientRect());
    for (let i = 0; i < boxes.length; i++)
      for (let j = 0; j < i; j++)
        if (touch(boxes[i], boxes[j]))
          found.push(what + ": " + elements[j].textContent.trim().slice(0, 30) + " / " +
                     elements[i].textContent.trim().slice(0, 30));
  };
  check([...document.querySelectorAll("header, section")], "sections");
  check([...document.querySelectorAll("figure")], "figures");
  for (const section of document.querySelectorAll("section"))
    check([...section.children], "parts of a section");
  for (const drawing of document.querySelectorAll("figure svg"))
    check([...drawing.querySelectorAll("text")], "texts of " + drawing.closest("figure").id);
  return found;
}
"""
OUTSIDE = """
() => [...document.querySelectorAll("body *")].filter(element =>
  element.parentElement.closest(".scroll") === null && element.closest("svg *") === null &&
  element.getBoundingClientRect().right > innerWidth + 1
).map(element => element.outerHTML.slice(0, 80))
"""
HIDDEN = """
() => [...document.querySelectorAll("figure svg")].filter(drawing => {
  const box = drawing.getBoundingClientRect();
  return box.width < 80 || box.height < 40 || !drawing.checkVisibility();
}).map(drawing => drawing.getAttribute("aria-label"))
"""


def chromium(playwright: Any) -> str | None:
    """The path of a Chromium: $CHROMIUM, one on the PATH, or playwright's own."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    own = playwright.chromium.executable_path
    return next((path for path in [*found, own] if path and Path(path).exists()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: set CHROMIUM to its path")
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    study = write_study(folder / "study", TASKS, SEEDS, VALUES)
    assert main(["report", "--paper", "-o", str(folder / "paper")]) == 0
    assert main(["report", str(study)]) == 0
    assert main(["report", str(study / "b1" / "seed0")]) == 0
    return {"paper": folder / "paper", "study": study, "run": study / "b1" / "seed0"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1400])
@pytest.mark.parametrize("name", ["paper", "study", "run"])
def test_a_page_is_quiet_complete_and_fits(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    address = (pages[name] / "report.html").as_uri()
    tab.goto(address)
    assert problems == [] and [url for url in requests if not url.startswith("data:")] == [address]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(OUTSIDE) == []
    assert tab.evaluate(HIDDEN) == []
    assert tab.evaluate(OVERLAPS) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


@pytest.mark.slow
def test_no_figure_is_taller_than_a_printed_page(browser: Any, tmp_path: Path) -> None:
    alphas = [number / 40 for number in range(40)]
    study = write_study(tmp_path / "study", TASKS, SEEDS[:1], VALUES, alphas)
    assert main(["report", str(study)]) == 0
    tab = browser.new_page(viewport={"width": 700, "height": 1000})
    tab.emulate_media(media="print")
    tab.goto((study / "report.html").as_uri())
    heights = tab.evaluate(
        "[...document.querySelectorAll('figure')].map(one => one.getBoundingClientRect().height)"
    )
    # A4 without the margins has 269 mm.
    assert heights and max(heights) < 269 / 25.4 * 96
    tab.close()
