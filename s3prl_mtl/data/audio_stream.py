"""Read audio in blocks of a second, so that the length of a recording needs no memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from s3prl_mtl.data.archives import open_file
from s3prl_mtl.data.audio import (
    LOSSY_SLACK_SAMPLES,
    SAMPLE_RATE,
    cut_short,
    libsndfile_reason,
    resample,
    unreadable_file,
)

_UNKNOWN_FRAMES = 2**62
"""libsndfile's number of frames for a file that does not state it."""


def audio_seconds(path: str | os.PathLike[str]) -> float:
    """The length that the header of an audio file states; infinite if it states none.

    Raises:
        UnreadableAudio: as :func:`audio_blocks`.
    """
    try:
        with soundfile.SoundFile(open_file(path)) as file:
            frames, rate = file.frames, file.samplerate
    except soundfile.LibsndfileError as error:
        raise unreadable_file(path, libsndfile_reason(error, path)) from error
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise unreadable_file(path, str(error)) from error
    return math.inf if frames >= _UNKNOWN_FRAMES else frames / rate


def audio_blocks(path: str | os.PathLike[str]) -> Iterator[Tensor]:
    """The waveform that `read_audio` returns, in blocks.

    Returns:
        Blocks (16000,) of a second, float32 in [-1, 1]; the last one may be shorter.

    Raises:
        UnreadableAudio: as `read_audio`; where a file is damaged behind the first blocks, after
            them.
    """
    blocks = 0
    for block in _resampled(*_open(path)):
        if not block.isfinite().all():
            raise unreadable_file(path, "it contains non-finite values")
        blocks += 1
        yield block.clamp_(-1.0, 1.0)
    if not blocks:
        raise unreadable_file(path, "it has no samples")


def pcm_blocks(stream: BinaryIO, sample_rate: int) -> Iterator[Tensor]:
    """The waveform of raw 16-bit little-endian mono samples, in blocks as :func:`audio_blocks`.

    A byte after the last sample is left out.

    Args:
        stream: read as the samples come.
        sample_rate: of the samples, in Hz.
    """

    def blocks() -> Iterator[Tensor]:
        while data := _read_full(stream, 2 * sample_rate):
            samples = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")
            if len(samples):
                yield torch.from_numpy(samples.astype(np.float32) / 32768)

    for block in _resampled(sample_rate, blocks()):
        yield block.clamp_(-1.0, 1.0)


def _read_full(stream: BinaryIO, size: int) -> bytes:
    """Read exactly `size` bytes, fewer only at the end; unbuffered streams may return fewer."""
    data = stream.read(size)
    while data and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _open(path: str | os.PathLike[str]) -> tuple[int, Iterator[Tensor]]:
    """The rate of a file, and the mean of its channels in blocks of a second."""
    try:
        file = soundfile.SoundFile(open_file(path))
    except soundfile.LibsndfileError as error:
        raise unreadable_file(path, libsndfile_reason(error, path)) from error
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise unreadable_file(path, str(error)) from error

    def blocks() -> Iterator[Tensor]:
        with file:
            reason = cut_short(file)
            if reason is not None:
                raise unreadable_file(path, reason)
            read, length = 0, file.frames
            try:
                while len(samples := file.read(file.samplerate, dtype="float32", always_2d=True)):
                    read += len(samples)
                    yield torch.from_numpy(samples).mean(dim=1)
            except soundfile.LibsndfileError as error:
                raise unreadable_file(path, libsndfile_reason(error, path)) from error
            if length < _UNKNOWN_FRAMES and read < length - LOSSY_SLACK_SAMPLES:
                raise unreadable_file(
                    path,
                    f"{read} of {length} samples can be decoded; it is damaged or not audio",
                )

    return int(file.samplerate), blocks()


def _resampled(sample_rate: int, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Resample blocks of a second to 16 kHz.

    The filter reaches less than a second to each side, and a second is a whole number of samples at
    both rates: with the neighbouring blocks, each block has the samples of the resampled whole.
    """
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    before, current = torch.empty(0), torch.empty(0)
    for after in blocks:
        if len(current):
            yield _middle(before, current, after, sample_rate)
        before, current = current, after
    if len(current):
        yield _middle(before, current, torch.empty(0), sample_rate)


def _middle(before: Tensor, current: Tensor, after: Tensor, sample_rate: int) -> Tensor:
    whole = resample(torch.cat([before, current, after]), sample_rate)
    first = SAMPLE_RATE if len(before) else 0
    # A shorter block is the last one.
    return whole[first : first + SAMPLE_RATE].clone()
