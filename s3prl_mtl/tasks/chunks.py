"""Chunks of long recordings, whose outputs a task joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """A part of a recording that is encoded at once, and the output of a head for it.

    Neighbouring chunks overlap. Each frame belongs to one of them: the own parts follow each other
    without gaps, and the rest of a chunk is context.

    Args:
        start: in the recording, in seconds; a whole number.
        end: likewise; that of the last chunk is the end of the recording.
        own_start: start of the own part, in seconds of the recording.
        own_end: its end.
        output: of `chunk_outputs` of the task, or of `predict`.
        is_silent: all samples are 0.
    """

    start: float
    end: float
    own_start: float
    own_end: float
    output: Any = None
    is_silent: bool = False

    def own(self, frames: Tensor, frames_per_second: float) -> Tensor:
        """The frames of the own part.

        Args:
            frames: (T, ...) of the whole chunk.
            frames_per_second: their rate.
        """
        # Positions in the recording: rounded within each chunk, errors would add up.
        own_start, own_end, start = (
            round(seconds * frames_per_second)
            for seconds in (self.own_start, self.own_end, self.start)
        )
        # A chunk has a frame less than its length: the end of the last one is not computed.
        first, last = own_start - start, own_end - start
        return frames[first:] if self.own_end == self.end else frames[first:last]

    @property
    def own_seconds(self) -> float:
        return self.own_end - self.own_start
