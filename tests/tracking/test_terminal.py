"""What a terminal of 60 columns shows."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from s3prl_mtl.tracking import console as consoles
from s3prl_mtl.tracking import progress
from s3prl_mtl.tracking.console import TerminalHandler, show_message
from s3prl_mtl.tracking.progress import EvaluationProgress, FileProgress, StepProgress

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


def test_an_evaluation_has_its_own_line_below_the_training(terminal: Console):
    with StepProgress(0, 200_000) as bar:
        bar.advance(1, NINE, audio_seconds=24.0)
        with EvaluationProgress() as evaluation:
            for split, batches in (("test-clean-and-other", 5_000), ("dev", None)):
                evaluation.begin("librispeech_asr", split, batches)
                evaluation.advance(1_234)
                evaluation._progress.refresh()
    lines = shown(terminal)
    assert max(map(len, lines)) <= terminal.width
    assert any(
        re.match(r"librispeech_asr test-clean-and-other .* 1234/5000 batches ", line)
        for line in lines
    )
    assert any(re.match(r"librispeech_asr dev .* 1234 batches ", line) for line in lines)
    assert any(line.startswith("1/200000 ") for line in lines)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_evaluation_shows_nothing_elsewhere(is_terminal: bool, monkeypatch):
    console = Console(width=60, file=io.StringIO(), force_terminal=is_terminal)
    monkeypatch.setattr(progress, "MESSAGES", console)
    with EvaluationProgress(shown=not is_terminal) as evaluation:
        evaluation.begin("asr", "dev", 7)
        evaluation.advance(3)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_torchs_warning_of_many_workers_is_logged_once(caplog: pytest.LogCaptureFixture):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        consoles.log_warnings_once()
        for more in (5, 5, 6):
            DataLoader([0], num_workers=(os.cpu_count() or 1) + more)
        warnings.warn("another one of line 1", stacklevel=1)
        warnings.warn("another one of line 2", stacklevel=1)
    first, second = (record.getMessage() for record in caplog.records)
    assert "worker processes" in first and "another one" in second


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


def test_what_goes_to_a_file_is_not_taken_by_the_bar(
    terminal: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`predict RUN FILES > out.jsonl` in a terminal."""
    (tmp_path / "a.wav").write_bytes(b"audio")
    with FileProgress([tmp_path / "a.wav"], 0) as files, StepProgress(0, 3):
        print('{"file": "a.wav"}')
        files.advance(1)
    assert capsys.readouterr().out == '{"file": "a.wav"}\n'
    assert not any("a.wav" in line for line in shown(terminal))
