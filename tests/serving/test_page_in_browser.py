"""The page of a server in headless Chromium: a file, and a microphone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.launcher import until
from tests.serving.servers import Server, make_run
from tests.study.test_page_in_browser import chromium

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    run = make_run(folder / "run", tiny_corpus, manifest_cache)
    with Server(run, folder / "log") as started:
        yield started


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Chromium's microphone hears, over and over."""
    path = tmp_path_factory.mktemp("microphone") / "sound.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * 48_000)
    soundfile.write(path, noise.astype(np.float32), 48_000, subtype="PCM_16")
    return path


@pytest.fixture
def tab(microphone: Path, server: Server) -> Iterator[Any]:
    """The page, which must not report a problem or use another server."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: set CHROMIUM to its path")
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        flags += [
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}",
        ]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        context = browser.new_context(permissions=["microphone"])
        opened = context.new_page()
        problems: list[str] = []
        requests: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(server.address)
        opened.wait_for_selector("#tasks input")
        opened.problems = problems
        yield opened
        ours = (server.address, "data:", "blob:")
        assert [url for url in requests if not url.startswith(ours)] == []
        browser.close()


def results(tab: Any) -> dict[str, str]:
    tab.wait_for_selector("#results:not([hidden])")
    rows = tab.query_selector_all("#results tr")
    return {
        row.query_selector("th").inner_text(): row.query_selector("td").inner_text() for row in rows
    }


def test_a_file_is_predicted_for_the_chosen_tasks(
    tab: Any, microphone: Path, server: Server
) -> None:
    assert "run" in tab.title()
    tab.uncheck("#tasks input[value=asr]")
    tab.set_input_files("#file", microphone)
    found = results(tab)
    assert list(found) == ["ks", "er"] and all("class: " in text for text in found.values())
    _, answers = server.predict("sound.wav", microphone.read_bytes(), "ks")
    assert answers["ks"]["class"] in found["ks"]
    assert tab.inner_text("#state") == "sound.wav" and tab.inner_text("#error") == ""
    assert tab.problems == []


def test_a_file_that_is_not_audio_is_explained(tab: Any, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.wav"
    path.write_text("not audio")
    tab.set_input_files("#file", path)
    tab.wait_for_selector("#error:not(:empty)")
    assert path.name in tab.inner_text("#error") and not tab.is_visible("#results")
    assert tab.query_selector("#error img") is None


def test_the_microphone_is_recorded_and_predicted(tab: Any) -> None:
    tab.click("#record")
    tab.wait_for_selector("#record:text('Stop')")
    count = "recording.parts.reduce((sum, part) => sum + part.length, 0)"
    until(lambda: tab.evaluate(f"{count} > recording.context.sampleRate"))
    loudest = "Math.max(...recording.parts.map(part => Math.max(...part.map(Math.abs))))"
    assert tab.evaluate(loudest) > 0.05
    with tab.expect_response("**/predict") as received:
        tab.click("#record")
    assert received.value.status == 200
    assert list(results(tab)) == ["asr", "ks", "er"]
    assert tab.inner_text("#state") == "recording.wav" and tab.problems == []
    # The recording can be heard.
    until(lambda: tab.evaluate("document.getElementById('sound').duration > 1"))


def test_the_interface_is_shown(tab: Any, server: Server) -> None:
    tab.goto(server.address + "/docs")
    tab.wait_for_selector("main section")
    headings = [element.inner_text() for element in tab.query_selector_all("h2")]
    assert headings == ["POST /predict", "GET /health"]
    assert "tasks (optional)" in tab.inner_text("main")
    assert server.address + "/predict" in tab.inner_text("#example")
    assert tab.problems == []


@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_fits(tab: Any, microphone: Path, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    tab.set_input_files("#file", microphone)
    results(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
