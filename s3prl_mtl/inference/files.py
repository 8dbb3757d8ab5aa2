"""Lines of predictions for audio files: short ones in batches, long ones in chunks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.data.audio_stream import audio_blocks, audio_seconds
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.audio_input import SILENCE, read_utterance
from s3prl_mtl.inference.chunking import Chunking
from s3prl_mtl.inference.loading import load_run
from s3prl_mtl.inference.long_audio import LongRecording
from s3prl_mtl.inference.trained import TrainedRun
from s3prl_mtl.inference.transcribing import GREEDY, Transcribing

logger = logging.getLogger(__name__)

BATCH_SECONDS = 100.0
"""Audio that is encoded together."""

STDIN = "-"
"""Name of the audio of the standard input in its lines."""

Line = dict[str, Any]
"""`file`, and the prediction of each task, or `error`."""


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction, except the audio and the device.

    Args:
        run: the folder of a run, or a checkpoint.
        tasks: names or aliases; None for all.
        against: a recording of the speaker to score (sv) the files against.
        chunking: of recordings that are longer than a chunk.
        batch_seconds: audio that is encoded together; a file or chunk that is longer is encoded
            alone.
        transcribing: decoder, n-best lists and times of transcripts.
        trust_remote_code: execute modelling code of the repository of the encoder.
    """

    run: Path
    tasks: tuple[str, ...] | None = None
    against: Path | None = None
    chunking: Chunking = field(default_factory=Chunking)
    batch_seconds: float = BATCH_SECONDS
    transcribing: Transcribing = GREEDY
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoadedTasks:
    """Names of the tasks of a loaded run that make predictions.

    Attributes:
        names: all of them.
        diarization: that of `sd`, if it is loaded.
        verification: that of `sv`.
        timed: that of `asr`, or else of `pr`.
        step: training step of the weights.
    """

    names: tuple[str, ...]
    diarization: str | None
    verification: str | None
    timed: str | None
    step: int


class FilePredictor:
    """The lines of files, from a run on one device.

    Args:
        settings: the run and its use.
        device: `auto`, `cpu`, `cuda` or `cuda:<number>`.

    Raises:
        UserError: the run or a task does not exist, no task makes predictions, or the file of
            `against` cannot be used.
    """

    def __init__(self, settings: PredictSettings, device: str) -> None:
        tasks = None if settings.tasks is None else list(settings.tasks)
        self.run = load_run(
            settings.run,
            tasks,
            device,
            where="predict",
            transcribing=settings.transcribing,
            trust_remote_code=settings.trust_remote_code,
        )
        names = self.run.predictable(None if tasks is None else self.run.tasks)
        if not names:
            raise UserError(
                "No task of the run makes predictions.",
                where=str(settings.run),
                code="not-supported",
            )
        found = {task: self.run.find(task) for task in ("sd", "sv", "asr", "pr")}
        known = {task: name if name in names else None for task, name in found.items()}
        self.tasks = LoadedTasks(
            tuple(names), known["sd"], known["sv"], known["asr"] or known["pr"], self.run.step
        )
        self._settings = settings
        self._speaker = _speaker(self.run, settings.against, self.tasks.verification)

    def lines(
        self, files: Sequence[Path], progress: Callable[[float], None] | None = None
    ) -> list[Line]:
        """The lines of files that are encoded together, or of one long file.

        Args:
            files: an entry of :func:`batches`.
            progress: called with the fraction of a long file that is done.
        """
        if len(files) == 1 and _seconds(files[0]) > self._settings.chunking.seconds:
            return [self._long_line(files[0], progress)]
        lines: list[Line] = [{"file": str(file)} for file in files]
        waveforms, readable = [], []
        for line, file in zip(lines, files, strict=True):
            try:
                waveforms.append(read_utterance(file))
                readable.append(line)
            except UserError as error:
                line["error"] = str(error)
        predicted = _predict(self.run, waveforms, self.tasks.names)
        for line, waveform, by_task in zip(readable, waveforms, predicted, strict=True):
            line |= by_task
            self._score(line, is_silent=not waveform.any())
        return lines

    def stream(self, blocks: Iterable[Tensor], name: str = STDIN) -> Iterator[Line]:
        """The line of each part of a recording as it comes, with `start` and `end` in seconds; then
        that of the whole.

        Args:
            blocks: the waveform at 16 kHz.
            name: of the recording in the lines.

        Raises:
            UserError: the encoder or a head fails, or the recording is shorter than a frame.
        """
        recording = LongRecording(self.run, self.tasks.names)
        for number in recording.add_all(blocks, self._settings.chunking):
            part = recording.part(number)
            line = {"file": name, "start": part.start, "end": part.end, **part.answers}
            self._score(line, part.is_silent)
            yield line
        whole = {"file": name, **recording.answers()}
        self._score(whole, recording.is_silent)
        yield whole

    def _long_line(self, file: Path, progress: Callable[[float], None] | None) -> Line:
        line: Line = {"file": str(file)}
        chunking = self._settings.chunking
        together = max(1, int(self._settings.batch_seconds // chunking.seconds))
        recording = LongRecording(self.run, self.tasks.names)
        try:
            length = audio_seconds(file)
            for _ in recording.add_all(audio_blocks(file), chunking, together):
                if progress is not None:
                    progress(min(1.0, recording.seconds / length))
            line |= recording.answers()
        except UserError as error:
            logger.debug("%s", error, exc_info=True)
            return {"file": str(file), "error": str(error)}
        self._score(line, recording.is_silent)
        return line

    def _score(self, line: Line, is_silent: bool) -> None:
        """Add the similarity to the speaker of `against` to the answer of `sv`."""
        task = self.tasks.verification
        if self._speaker is None or task not in line:
            return
        if is_silent:
            line[task]["no_score"] = SILENCE
        else:
            line[task]["score"] = float(torch.tensor(line[task]["embedding"]) @ self._speaker)


def batches(files: Iterable[Path], settings: PredictSettings) -> Iterator[list[Path]]:
    """Files that are encoded together, in their order; a file of several chunks is alone."""
    batch: list[Path] = []
    total = 0.0
    for file in files:
        seconds = _seconds(file)
        is_long = seconds > settings.chunking.seconds
        if batch and (is_long or total + seconds > settings.batch_seconds):
            yield batch
            batch, total = [], 0.0
        batch.append(file)
        total += seconds
        if is_long:
            yield batch
            batch, total = [], 0.0
    if batch:
        yield batch


def _seconds(file: Path) -> float:
    """The length of a file; 0 for one that cannot be read, whose line has the reason."""
    try:
        return audio_seconds(file) if not os.path.isdir(file) else 0.0
    except UserError:
        return 0.0


def _speaker(run: TrainedRun, against: Path | None, task: str | None) -> Tensor | None:
    if against is None or task is None:
        return None
    try:
        return run.embedding(against, task)
    except UserError as error:
        raise UserError(
            error.what, where=f"--against {against}", fix=error.fix, code=error.code
        ) from error


def _predict(
    run: TrainedRun, waveforms: Sequence[Tensor], tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """Predict in one batch; one by one if one of the waveforms is refused."""
    try:
        return list(run.predict(waveforms, tasks))
    except UserError as error:
        logger.debug("%s", error, exc_info=True)
        if len(waveforms) == 1:
            return [{"error": str(error)}]
    return [by_task for wave in waveforms for by_task in _predict(run, [wave], tasks)]
