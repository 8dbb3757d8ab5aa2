"""The command `predict` on lists, streams and long files, on several devices, and interrupted."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config
from s3prl_mtl.inference.files import LoadedTasks, PredictSettings
from s3prl_mtl.inference.transcribing import Transcribing
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.launcher import Started, environment, send, until

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"
SECONDS = {"b/2.wav": 1.0, "a/1.flac": 2.5, "a/long.wav": 11.0, "c.wav": 0.5, "d.wav": 6.0}
CHUNKS = ["--chunk_seconds", "4", "--overlap_seconds", "2"]


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "downstream": ["asr", "ks", "sv", "sd"],
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "runner.total_steps": 1,
        "runner.test_first": False,
        "runner.test_last": False,
    }
    folder = tmp_path_factory.mktemp("run")
    MultiTaskRunner(build_config(files=[SMALL_HEADS], flags=settings), folder).train()
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files."""
    folder = tmp_path_factory.mktemp("audio")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(16_000 * seconds))
        soundfile.write(path, noise.astype(np.float32), 16_000)
    (folder / "notes.txt").write_text("not audio")
    (folder / "e.wav").write_text("not audio")
    return folder


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def close(one: Any, other: Any) -> bool:
    """Whether answers are equal but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, abs=1e-4) if isinstance(one, float) else other)


def predict(run: Path, *words: object, code: int = 0) -> None:
    assert main(["predict", str(run), "--device", "cpu", *map(str, words)]) == code


def test_a_folder_a_list_and_files_have_the_same_lines(
    run: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    predict(run, *CHUNKS, audio, code=2)
    folder = lines_of(capsys.readouterr().out)
    files = sorted([*SECONDS, "e.wav"])
    assert [line["file"] for line in folder] == [str(audio / name) for name in files]
    assert [line["file"] for line in folder if "error" in line] == [str(audio / "e.wav")]
    for line in folder:
        seconds = SECONDS.get(str(Path(line["file"]).relative_to(audio)), 0)
        assert ("chunks" in line.get("ks", {})) == (seconds > 4)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(audio / name) for name in files) + "\n\n", "utf-8-sig")
    out = tmp_path / "out.jsonl"
    predict(run, *CHUNKS, "--list", listed, "--batch_seconds", 0.1, "-o", out, code=2)
    assert close(lines_of(out.read_text()), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "out.jsonl"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed.read_bytes())))
    predict(run, *CHUNKS, "--list", "-", "--batch_seconds", 30, code=2)
    assert close(lines_of(capsys.readouterr().out), folder)


def test_a_stream_has_a_line_for_each_chunk_and_one_for_all(
    run: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    samples, _ = soundfile.read(audio / "a/long.wav", dtype="int16")
    content = samples.astype("<i2").tobytes()
    against = ["--against", audio / "d.wav", "--task", "sv,sd,asr,ks"]
    rttm = tmp_path / "who.rttm"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    predict(run, *CHUNKS, "--stdin", *against, "--rttm", rttm)
    *parts, whole = lines_of(capsys.readouterr().out)
    assert [(part["start"], part["end"]) for part in parts] == [
        *((0, 3), (3, 5), (5, 7), (7, 9), (9, 11)),
    ]
    predict(run, *CHUNKS, *against, audio / "a/long.wav")
    (file,) = lines_of(capsys.readouterr().out)
    assert close({**file, "file": "-"}, whole)
    assert all(-1.001 <= line["sv"]["score"] <= 1.001 for line in (*parts, whole))
    assert len(rttm.read_text().splitlines()) == len(whole["sd"]["segments"])


@pytest.mark.slow
def test_several_devices_give_the_same_lines_in_the_same_order(
    run: Path, audio: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "ks,asr", *CHUNKS, "--batch_seconds", "1", audio]
    predict(run, *words, code=2)
    one = lines_of(capsys.readouterr().out)
    predict(run, *words, "--device", "cpu,cpu", code=2)
    assert close(lines_of(capsys.readouterr().out), one)
    predict(run, "--task", "nothing", "--device", "cpu,cpu", audio, code=2)
    assert "nothing" in capsys.readouterr().err


def test_an_interrupted_file_is_continued(
    run: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(SECONDS)
    words = ["--task", "ks,sd", *CHUNKS, *(audio / name for name in names)]
    complete, out = tmp_path / "complete.jsonl", tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    predict(run, *words, "-o", complete)
    content = complete.read_text().splitlines(keepends=True)
    # Interrupted in its third line.
    settings = tmp_path / "out.jsonl.part.json"

    def interrupt(lines: list[str]) -> None:
        part.write_text("".join(lines))
        out.unlink(missing_ok=True)

    interrupt([])
    predict(run, *words[:-1], audio / "missing.wav", "-o", out, code=2)
    assert "missing.wav" in out.read_text()
    interrupt([*content[:2], content[2][:20]])
    settings.write_text(saved_settings(run, audio, tmp_path))
    rttm = tmp_path / "who.rttm"
    predict(run, *words, "-o", out, "--rttm", rttm)
    assert out.read_text() == complete.read_text()
    assert not part.exists() and not settings.exists()
    segments = sum(len(line["sd"]["segments"]) for line in lines_of(out.read_text()))
    assert len(rttm.read_text().splitlines()) == segments
    # It is never overwritten.
    predict(run, *words, "-o", out, code=2)
    assert out.read_text() == complete.read_text()
    # Lines of other settings or files are not mixed.
    for other, code in (
        (["--task", "ks", *words[2:]], "tasks"),
        ([*words[:2], "--chunk_seconds", "5", *words[4:]], "chunk_seconds"),
        ([*words[:6], *reversed(words[6:])], str(audio / names[0])),
    ):
        interrupt(content[:2])
        settings.write_text(saved_settings(run, audio, tmp_path))
        capsys.readouterr()
        predict(run, *other, "-o", out, code=2)
        assert code in capsys.readouterr().err
        assert part.read_text() == "".join(content[:2]) and not out.exists()
    settings.unlink()
    predict(run, *words, "-o", out, code=2)
    assert part.exists()


def test_names_that_are_not_text_are_kept(run: Path, audio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    name = os.path.join(os.fsencode(folder), b"\xff.wav")
    shutil.copy(audio / "c.wav", name)
    out, ctm = tmp_path / "out.jsonl", tmp_path / "out.ctm"
    predict(run, "--task", "asr", folder, audio / "d.wav", "-o", out, "--ctm", ctm)
    first, _ = lines_of(out.read_text())
    assert os.fsencode(first["file"]) == name
    assert {line.split()[0] for line in ctm.read_bytes().splitlines()} <= {b"\xff", b"d"}


def test_a_stream_without_a_frame_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "out.jsonl"
    for content in (b"", b"x", bytes(700)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        predict(run, "--task", "ks", "--stdin", "-o", out, "--verbose", code=2)
        assert "[audio-too-short]" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_settings_of_a_decoder_are_saved_as_they_are_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3prl_mtl.api.prediction import fingerprint

    monkeypatch.chdir(tmp_path)
    decoder = {"lm": Path("a.arpa"), "lexicon": "b.txt", "splits": ("dev",), "beam": 5}
    settings = PredictSettings(run, transcribing=Transcribing(decoder))
    saved = fingerprint(settings, LoadedTasks(("asr",), None, None, "asr", 1))
    assert json.loads(json.dumps(saved)) == saved
    files = {"lm": str(tmp_path / "a.arpa"), "lexicon": str(tmp_path / "b.txt")}
    assert saved["transcribing"]["decoder"] == {**decoder, **files, "splits": ["dev"]}


def saved_settings(run: Path, audio: Path, folder: Path) -> str:
    """The settings that a work saves which is killed at once."""
    from s3prl_mtl.api.prediction import fingerprint
    from s3prl_mtl.inference.chunking import Chunking

    settings = PredictSettings(run, chunking=Chunking(4, 2))
    return json.dumps(fingerprint(settings, LoadedTasks(("ks", "sd"), "sd", None, None, 1)))


@pytest.mark.slow
def test_a_killed_process_is_continued_without_a_line_twice(
    run: Path, audio: Path, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    files = [audio / name for name in sorted(SECONDS)] * 40
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    flags = ["--device", "cpu", "--task", "ks", "--batch_seconds", "0.1", "-o", str(out)]
    command = [sys.executable, "-m", "s3prl_mtl", "predict", str(run), *flags, *map(str, files)]
    variables = environment(tiny_corpus, manifest_cache)
    with Started(command, tmp_path / "log", variables) as started:
        until(lambda: part.exists() and part.read_text().count("\n") > 3, started.text)
        send(started.process.pid, signal.SIGKILL)
        started.process.wait()
    assert 3 < part.read_text().count("\n") < len(files) and not out.exists()
    assert main(command[3:]) == 0
    assert [line["file"] for line in lines_of(out.read_text())] == list(map(str, files))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "missing-option"),
        (["a.wav", "--stdin"], "conflicting-options"),
        (["--list", "{tmp}/none"], "file-missing"),
        (["--list", "/dev/null"], "missing-option"),
        (["--stdin", "--device", "cpu,cpu"], "conflicting-options"),
        (["a.wav", "--chunk_seconds", "1"], "invalid-value"),
        (["a.wav", "--batch_seconds", "0"], "invalid-value"),
        (["a.wav", "--batch_seconds", "inf"], "invalid-value"),
    ],
)
def test_mistakes_are_found_before_the_run_is_loaded(
    words: list[str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(tmp=tmp_path) for word in words]
    assert main(["predict", str(tmp_path / "no_run"), "--verbose", *given]) == 2
    assert f"[{code}]" in capsys.readouterr().err


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", str(tmp_path), "a.wav", "--verbose"]) == 2
    assert "[launch-invalid]" in capsys.readouterr().err
