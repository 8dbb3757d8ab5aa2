"""Audio in blocks: together they are the waveform of the whole file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl.data import SAMPLE_RATE, read_audio, resample
from s3prl_mtl.data.audio_stream import audio_blocks, audio_seconds, pcm_blocks
from tests.mistakes import user_error


def noise(seconds: float, rate: int, channels: int = 2) -> np.ndarray:
    generator = np.random.default_rng(rate)
    return 0.2 * generator.standard_normal((round(seconds * rate), channels)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.3])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_blocks_are_the_whole_file(tmp_path: Path, rate: int, suffix: str, seconds: float) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(seconds, rate), rate)
    blocks = list(audio_blocks(path))
    assert all(len(block) == SAMPLE_RATE for block in blocks[:-1])
    torch.testing.assert_close(torch.cat(blocks), read_audio(path), rtol=0, atol=1e-6)
    assert audio_seconds(path) == pytest.approx(seconds, abs=0.1)


def test_the_samples_of_a_stream_are_its_waveform() -> None:
    samples = (32767 * np.clip(noise(2.5, 48_000, 1)[:, 0], -1, 1)).astype("<i2")
    blocks = pcm_blocks(io.BytesIO(samples.tobytes() + b"x"), 48_000)
    whole = resample(torch.from_numpy(samples.astype(np.float32) / 32768), 48_000)
    torch.testing.assert_close(torch.cat(list(blocks)), whole, rtol=0, atol=1e-6)
    assert list(pcm_blocks(io.BytesIO(b""), 16_000)) == []


def test_damage_is_found_where_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(3, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[:-1000])
    with user_error("audio-unreadable", where="a.wav"):
        list(audio_blocks(path))
    values = noise(3, 16_000)
    values[40_000] = np.nan
    soundfile.write(path, values, 16_000, subtype="FLOAT")
    blocks = audio_blocks(path)
    assert len(next(blocks)) == len(next(blocks)) == SAMPLE_RATE
    with user_error("audio-unreadable", where="a.wav"):
        next(blocks)
    path.write_text("this is not audio")
    for read in (audio_seconds, lambda file: list(audio_blocks(file))):
        with user_error("audio-unreadable", where="a.wav"):
            read(path)
        with user_error("file-missing", where="b.wav"):
            read(tmp_path / "b.wav")
    soundfile.write(path, noise(0, 16_000), 16_000)
    with user_error("audio-unreadable", where="a.wav"):
        list(audio_blocks(path))


def test_an_unbuffered_stream_of_odd_reads_loses_no_sample() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 40_001).astype("<i2")

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 4095))

    blocks = list(pcm_blocks(Pipe(samples.tobytes()), 16_000))
    assert [len(block) for block in blocks] == [16_000, 16_000, 8001]
    assert np.array_equal(torch.cat(blocks).numpy() * 32768, samples)
