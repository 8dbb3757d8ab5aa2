"""Cut the waveform of a long recording into chunks that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.audio_input import check_length
from s3prl_mtl.tasks.chunks import Chunk

CHUNK_SECONDS = 40
"""Longer than any utterance of SUPERB's tasks but those of `sid` and `sv`."""

OVERLAP_SECONDS = 4


@dataclass(frozen=True)
class Chunking:
    """Division of recordings into chunks of whole seconds (whole numbers of frames and samples).

    Args:
        seconds: length of a chunk. Recordings up to this length are not cut.
        overlap: of two neighbours; each gives half of it as context to the other.

    Raises:
        UserError: the lengths are not possible.
    """

    seconds: int = CHUNK_SECONDS
    overlap: int = OVERLAP_SECONDS

    def __post_init__(self) -> None:
        if not 0 < 2 * self.overlap <= self.seconds:
            raise UserError(
                f"Chunks of {self.seconds} s cannot overlap by {self.overlap} s.",
                where="--chunk_seconds, --overlap_seconds",
                fix="The overlap is at least 1 s, and at most half of a chunk.",
                code="invalid-value",
            )


def chunking_of(seconds: int | None, overlap: int | None) -> Chunking:
    """The lengths of chunks; by default an overlap of 4 s, and at most half of a shorter chunk.

    Raises:
        UserError: they are not possible.
    """
    seconds = CHUNK_SECONDS if seconds is None else seconds
    if overlap is None:
        overlap = max(1, min(OVERLAP_SECONDS, seconds // 2))
    return Chunking(seconds, overlap)


def cut(blocks: Iterable[Tensor], chunking: Chunking) -> Iterator[tuple[Chunk, Tensor]]:
    """The chunks of a recording, without outputs, with their waveforms.

    A chunk is given as soon as a sample behind it is read: only then it is not the last one.

    Args:
        blocks: the waveform, float32 at 16 kHz, in parts of any length.
        chunking: lengths of the chunks.

    Raises:
        UserError: the recording is shorter than a frame.
    """
    length = chunking.seconds * SAMPLE_RATE
    step = (chunking.seconds - chunking.overlap) * SAMPLE_RATE
    half = chunking.overlap / 2
    waiting, start = torch.empty(0), 0.0
    for block in blocks:
        waiting = torch.cat([waiting, block])
        while len(waiting) > length:
            end = start + chunking.seconds
            own_start = start + half if start else 0.0
            wave = waiting[:length].clone()
            yield Chunk(start, end, own_start, end - half, is_silent=not wave.any()), wave
            waiting, start = waiting[step:], start + step / SAMPLE_RATE
    if not start:
        check_length(waiting, "the recording")
    if len(waiting):
        end = start + len(waiting) / SAMPLE_RATE
        own_start = start + half if start else 0.0
        yield Chunk(start, end, own_start, end, is_silent=not waiting.any()), waiting
