"""What a terminal of 60 columns shows."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from s3prl_mtl.tracking import console as consoles
from s3prl_mtl.tracking import progress
from s3prl_mtl.tracking.console import TerminalHandler, show_message
from s3prl_mtl.tracking.progress import StepProgress

NINE = dict.fromkeys(["asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd"], 12.3456)
PATH = "/scratch/corpora/" + "a-long-folder/" * 8 + "file.wav"


@pytest.fixture(params=[60, 80])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=request.param, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(consoles, "MESSAGES", console)
    monkeypatch.setattr(progress, "MESSAGES", console)
    return console


def shown(terminal: Console) -> list[str]:
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()


def test_the_line_of_a_run_of_nine_tasks_fits(terminal: Console, monkeypatch):
    seconds = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with StepProgress(123_400, 200_000) as bar:
        for step in range(123_401, 123_404):
            bar.advance(step, NINE, audio_seconds=246.0)
    lines = shown(terminal)
    assert max(map(len, lines)) <= terminal.width
    assert any(
        re.fullmatch(r"123403/200000 .* [-\d:]+ 123 s/s loss 111\.110 *", line) for line in lines
    )
    assert all(any(f"{name} 12.346" in line for line in lines) for name in NINE)


def test_paths_in_messages_stay_in_one_piece(terminal: Console):
    show_message(f"error: The file cannot be read. Where: {PATH}, line 3. Fix: Replace it.", "red")
    lines = shown(terminal)
    assert any(PATH in line for line in lines)
    assert all(len(line) <= terminal.width for line in lines if PATH not in line)


def test_the_log_on_a_terminal_wraps_between_words(terminal: Console):
    handler = TerminalHandler()
    handler.handle(logging.makeLogRecord({"msg": f"Resuming {PATH} [now].", "levelno": 20}))
    lines = shown(terminal)
    assert any(PATH in line for line in lines) and "[now]." in lines[-1]
