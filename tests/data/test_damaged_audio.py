"""Files that are no audio, or not all of it, are refused by name; for corpora alike."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data import UnreadableAudio, Utterance, read_audio
from s3prl_mtl.data.scanning import scan

NOISE = 0.1 * np.random.default_rng(0).standard_normal(44_160)


def written(path: Path, **form: str) -> Path:
    soundfile.write(path, NOISE, 16_000, **form)
    return path


def with_sizes(path: Path, riff: int, audio: int) -> Path:
    """A wav whose header says other numbers of bytes."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data")
    content[4:8], content[at + 4 : at + 8] = struct.pack("<I", riff), struct.pack("<I", audio)
    path.write_bytes(content)
    return path


def skipped(path: Path) -> list[tuple[str, str]]:
    """What a scan of a corpus says of a file."""
    return scan([Utterance("u", path, {})], None, 1, "a corpus").skipped


@pytest.mark.parametrize(("suffix", "form"), [("wav", "WAV"), ("aiff", "AIFF"), ("au", "AU")])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_ends_before_its_header_says_is_refused(
    tmp_path: Path, suffix: str, form: str, share: float
):
    path = written(tmp_path / f"a.{suffix}", format=form)
    assert len(read_audio(path)) == len(NOISE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableAudio, match=r"truncated \(\d+ of 883\d\d bytes") as mistake:
        read_audio(path)
    assert str(path) in str(mistake.value)
    ((file, reason),) = skipped(path)
    assert file == str(path) and reason.startswith("truncated")


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_half_an_mp3_is_refused(tmp_path: Path, share: float):
    path = written(tmp_path / "a.mp3", format="MP3")
    assert len(read_audio(path)) == len(NOISE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableAudio, match=r"announces 44160 samples, of which \d+ can"):
        read_audio(path)
    assert skipped(path)


@pytest.mark.parametrize(
    ("riff", "audio"),
    [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0xFFFFFFFF, 0xFFFFFFDB), (8, 0)],
)
def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path: Path, riff: int, audio: int):
    path = written(tmp_path / "a.wav", subtype="PCM_16")
    whole = read_audio(path)
    assert read_audio(with_sizes(path, riff, audio)).equal(whole)
    assert skipped(path) == []


def test_what_is_no_audio_is_said_to_be_none(tmp_path: Path):
    contents = {
        "text.mp3": b"hello world " * 300,
        "bytes.mp3": random.Random(0).randbytes(5000),
        "text.wav": b"hello world " * 300,
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UnreadableAudio, match="cannot be read") as mistake:
            read_audio(path)
        ((_, reason),) = skipped(path)
        for text in (str(mistake.value), reason):
            assert "does not exist" not in text and "pipe" not in text
    with pytest.raises(UnreadableAudio, match="it does not exist"):
        read_audio(tmp_path / "nowhere.mp3")
