"""Predictions for recordings of any length: by chunks, joined for each task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from s3prl_mtl.inference.chunking import Chunking, cut
from s3prl_mtl.inference.predictions import Answer
from s3prl_mtl.tasks.chunks import Chunk

if TYPE_CHECKING:
    from s3prl_mtl.inference.trained import TrainedRun


@dataclass(frozen=True)
class PartAnswers:
    """The predictions for the part of a recording that belongs to one chunk.

    Attributes:
        start: of the part, in seconds.
        end: of the part.
        answers: of each task.
        is_silent: all samples of the chunk are 0.
    """

    start: float
    end: float
    answers: dict[str, Answer]
    is_silent: bool


class LongRecording:
    """The predictions of a recording whose chunks come one after another.

    It takes the memory of the outputs of the heads, about 5 MB an hour for nine tasks.

    Args:
        run: the trained run.
        tasks: names of tasks that make predictions.

    Attributes:
        seconds: length of what was added.
        is_silent: all of its samples are 0.
    """

    def __init__(self, run: TrainedRun, tasks: Sequence[str]) -> None:
        self._run = run
        self._chunks: dict[str, list[Chunk]] = {task: [] for task in tasks}
        self.seconds = 0.0
        self.is_silent = True

    def add_all(
        self, blocks: Iterable[Tensor], chunking: Chunking, together: int = 1
    ) -> Iterator[int]:
        """Cut and encode a recording.

        Args:
            blocks: the waveform, float32 at 16 kHz, in parts of any length.
            chunking: lengths of the chunks.
            together: number of chunks that are encoded together.

        Returns:
            The number of each chunk that was added, as it comes.

        Raises:
            UserError: the encoder or a head fails, or the blocks raise it.
        """
        chunks, number = cut(blocks, chunking), 0
        while batch := list(islice(chunks, together)):
            self._add(batch)
            for _ in batch:
                yield number
                number += 1

    def _add(self, chunks: Sequence[tuple[Chunk, Tensor]]) -> None:
        outputs = self._run.chunk_outputs([wave for _, wave in chunks], list(self._chunks))
        for (cut_chunk, _), by_task in zip(chunks, outputs, strict=True):
            for task, known in self._chunks.items():
                chunk = replace(cut_chunk, output=by_task[task])
                if known:
                    chunk = self._run.align_chunk(task, known[-1], chunk)
                known.append(chunk)
            self.seconds = cut_chunk.end
            self.is_silent = self.is_silent and cut_chunk.is_silent

    def part(self, number: int) -> PartAnswers:
        """The predictions for the own part of a chunk.

        Args:
            number: of the chunk.
        """
        parts = {task: [known[number]] for task, known in self._chunks.items()}
        one = next(iter(parts.values()))[0]
        return PartAnswers(one.own_start, one.own_end, self._joined(parts), one.is_silent)

    def answers(self) -> dict[str, Answer]:
        """The predictions for the whole recording.

        Raises:
            UserError: a head cannot join its outputs.
        """
        return self._joined(self._chunks)

    def _joined(self, chunks: dict[str, list[Chunk]]) -> dict[str, Answer]:
        return {task: self._run.join_chunks(task, of_task) for task, of_task in chunks.items()}
