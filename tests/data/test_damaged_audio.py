"""Truncated files and files that are not audio are errors, and skipped by scans of corpora."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data import UnreadableAudio, Utterance, read_audio
from s3prl_mtl.data.scanning import scan
from tests.mistakes import user_error

NOISE = 0.1 * np.random.default_rng(0).standard_normal(44_160)


def written(path: Path, **form: str) -> Path:
    soundfile.write(path, NOISE, 16_000, **form)
    return path


def with_sizes(path: Path, riff: int, audio: int) -> Path:
    """Change the numbers of bytes in the header of a wav file."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data")
    content[4:8], content[at + 4 : at + 8] = struct.pack("<I", riff), struct.pack("<I", audio)
    path.write_bytes(content)
    return path


def skipped(path: Path) -> list[tuple[str, str]]:
    """(path, reason) of a file skipped by the scan of a corpus."""
    return scan([Utterance("u", path, {})], None, 1, "a corpus").skipped


@pytest.mark.parametrize(("suffix", "form"), [("wav", "WAV"), ("aiff", "AIFF"), ("au", "AU")])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_shorter_than_its_header_states_is_an_error(
    tmp_path: Path, suffix: str, form: str, share: float
):
    path = written(tmp_path / f"a.{suffix}", format=form)
    assert len(read_audio(path)) == len(NOISE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with user_error("audio-unreadable", where=re.escape(str(path))) as caught:
        read_audio(path)
    assert isinstance(caught.value, UnreadableAudio)
    assert re.search(r"\d+ of 883\d\d\b", caught.value.what)
    ((file, reason),) = skipped(path)
    assert file == str(path) and reason.startswith("truncated")


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_half_an_mp3_is_an_error(tmp_path: Path, share: float):
    path = written(tmp_path / "a.mp3", format="MP3")
    assert len(read_audio(path)) == len(NOISE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with user_error("audio-unreadable", where=re.escape(str(path))) as caught:
        read_audio(path)
    assert re.search(r"\d+ of 44160\b", caught.value.what)
    assert skipped(path)


@pytest.mark.parametrize(
    ("riff", "audio"),
    [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0xFFFFFFFF, 0xFFFFFFDB), (8, 0)],
)
def test_a_wav_written_to_a_pipe_is_complete(tmp_path: Path, riff: int, audio: int):
    path = written(tmp_path / "a.wav", subtype="PCM_16")
    whole = read_audio(path)
    assert read_audio(with_sizes(path, riff, audio)).equal(whole)
    assert skipped(path) == []


def test_files_that_are_not_audio_are_errors_other_than_a_missing_file(tmp_path: Path):
    contents = {
        "text.mp3": b"hello world " * 300,
        "bytes.mp3": random.Random(0).randbytes(5000),
        "text.wav": b"hello world " * 300,
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with user_error("audio-unreadable", where=re.escape(str(path))):
            read_audio(path)
        ((_, reason),) = skipped(path)
        with pytest.raises(soundfile.LibsndfileError) as theirs:
            soundfile.SoundFile(path)
        # Of an mp3 without a frame libsndfile itself says that the file does not exist.
        is_repeated = theirs.value.error_string.rstrip(".") in reason
        assert is_repeated == (path.suffix == ".wav")
    with user_error("file-missing", where=r"nowhere\.mp3"):
        read_audio(tmp_path / "nowhere.mp3")
