"""A trained run: predictions of all heads from one pass of the encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.audio_stream import audio_blocks
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.audio_input import (
    SILENCE,
    Audio,
    as_waveform,
    as_waveforms,
    audio_name,
)
from s3prl_mtl.inference.chunking import CHUNK_SECONDS, OVERLAP_SECONDS, Chunking
from s3prl_mtl.inference.long_audio import LongRecording
from s3prl_mtl.inference.memory import release_freed
from s3prl_mtl.inference.predictions import (
    Answer,
    align_chunk,
    chunk_outputs,
    condition,
    has_predict,
    join_chunks,
    no_predict_error,
    predict,
    task_label,
)
from s3prl_mtl.registry.task_names import Packages, find_in_run, require_in_run
from s3prl_mtl.tasks.chunks import Chunk
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states

SECONDS_BETWEEN_RELEASES = 200.0
"""Audio between two releases of freed memory, which take 2 % of the time."""


class TrainedRun:
    """The encoder and the heads of a run, without its corpora. :func:`s3prl_mtl.load` makes one.

    Args:
        encoder: the encoder and the featurizer.
        tasks: the loaded tasks.
        step: training step of the weights.
        packages: the package of each task.
        skipped: tasks of the run that could not be loaded, with the errors.

    Attributes:
        tasks: names of the loaded tasks, in the run's order.
        labels: their label spaces.
        step: training step of the weights.
    """

    def __init__(
        self,
        encoder: SharedEncoder,
        tasks: Mapping[str, Task],
        step: int,
        packages: Packages,
        skipped: Mapping[str, UserError],
    ) -> None:
        self._encoder = encoder
        self._packages = dict(packages)
        self._tasks = dict(tasks)
        self._skipped = dict(skipped)
        self.step = step
        self._unreleased_seconds = 0.0
        encoder.set_training(False)
        for task in self._tasks.values():
            task.expert.eval()

    @property
    def tasks(self) -> list[str]:
        return list(self._tasks)

    @property
    def labels(self) -> dict[str, Any]:
        return {name: getattr(task.expert, "labels", None) for name, task in self._tasks.items()}

    @torch.no_grad()
    def predict(
        self,
        audio: Sequence[Audio],
        tasks: Sequence[str] | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> list[dict[str, Answer]]:
        """Predict with the heads for utterances.

        All utterances go through the encoder in one pass for all tasks; versions of a waveform
        that a task needs, at another level or without silences, are added to the same pass.

        Args:
            audio: paths of audio files, or waveforms (samples,) in [-1, 1].
            tasks: names or aliases of tasks (`asv`); None takes all that have `predict`.
            sample_rate: of the waveforms, in Hz (files have their own).

        Returns:
            for each utterance {task: answer}, with the names of `self.tasks`:
            `asr` text · `pr` phones · `sf` text, slots · `ks`, `sid`, `er` class, probability ·
            `ic` action, object, location, probability · `sv` embedding · `sd` segments.

        Raises:
            UserError: an audio file that cannot be read or is shorter than a frame, an unknown
                task, or a head without `predict` or with invalid answers.
            TypeError, ValueError: an argument that is not a list of audio, or not a sample rate.
        """
        names = self.predictable(tasks)
        waveforms = as_waveforms(audio, sample_rate)
        return self._by_task(waveforms, names, predict)

    def predict_long(
        self,
        audio: str | os.PathLike[str] | Iterable[Tensor],
        tasks: Sequence[str] | None = None,
        chunk_seconds: int = CHUNK_SECONDS,
        overlap_seconds: int = OVERLAP_SECONDS,
    ) -> dict[str, Answer]:
        """Predict for a recording of any length, read and encoded in chunks that overlap.

        Args:
            audio: the path of an audio file, or its waveform at 16 kHz in parts (samples_i,).
            tasks: names or aliases of tasks; None takes all that have `predict`.
            chunk_seconds: length of a chunk.
            overlap_seconds: of neighbouring chunks.

        Returns:
            {task: answer}, as :meth:`predict` for one utterance. Classes have the predictions of
            the chunks in `chunks`, and tasks that do not join theirs have nothing else.

        Raises:
            UserError: as :meth:`predict`; lengths that are not possible.
        """
        names = self.predictable(tasks)
        blocks = audio_blocks(audio) if isinstance(audio, str | os.PathLike) else audio
        recording = LongRecording(self, names)
        for _ in recording.add_all(blocks, Chunking(chunk_seconds, overlap_seconds)):
            pass
        return recording.answers()

    @torch.no_grad()
    def chunk_outputs(
        self, waveforms: Sequence[Tensor], tasks: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The outputs of the heads for chunks of recordings, for :meth:`join_chunks`.

        Args:
            waveforms: (samples,) of each chunk, at 16 kHz.
            tasks: names of tasks that have `predict`.

        Returns:
            for each chunk {task: output}.

        Raises:
            UserError: as :meth:`predict`.
        """
        return self._by_task(waveforms, tasks, chunk_outputs)

    def align_chunk(self, task: str, previous: Chunk, chunk: Chunk) -> Chunk:
        """A chunk whose output is comparable with that of the chunk before it.

        Raises:
            UserError: the head fails.
        """
        return align_chunk(self._tasks[task].expert, previous, chunk, self._label(task))

    def join_chunks(self, task: str, chunks: Sequence[Chunk]) -> Answer:
        """The prediction of a head for a recording, from its chunks.

        Raises:
            UserError: the head fails.
        """
        return join_chunks(self._tasks[task].expert, chunks, self._label(task))

    def _by_task(
        self,
        waveforms: Sequence[Tensor],
        names: Sequence[str],
        of_head: Callable[[Any, Sequence[Tensor], Sequence[int], str], list[Any]],
    ) -> list[dict[str, Any]]:
        """The results of a function of the heads, for each waveform by task."""
        answers: list[dict[str, Any]] = [{} for _ in waveforms]
        if not waveforms or not names:
            return answers
        versions: list[Tensor] = []
        places: dict[str, list[int]] = {}
        for name in names:
            own_waveforms = condition(self._tasks[name].expert, waveforms, self._label(name))
            places[name] = [_place(wave, versions) for wave in own_waveforms]
        hidden = self._encoder.hidden_states(versions)
        features = self._encoder.weighted(hidden)
        for name in names:
            expert = self._tasks[name].expert
            inputs = layers(hidden) if wants_hidden_states(expert) else features
            own = [inputs[place] for place in places[name]]
            lengths = [len(versions[place]) for place in places[name]]
            predicted = of_head(expert, own, lengths, self._label(name))
            for answer, prediction in zip(answers, predicted, strict=True):
                answer[name] = prediction
        del hidden, features
        self._unreleased_seconds += sum(map(len, waveforms)) / SAMPLE_RATE
        if self._unreleased_seconds >= SECONDS_BETWEEN_RELEASES:
            release_freed()
            self._unreleased_seconds = 0.0
        return answers

    def predictable(self, tasks: Sequence[str] | None = None) -> list[str]:
        """The names of tasks that have `predict`.

        Args:
            tasks: names or aliases, each of a task with `predict`; None takes all of them.

        Raises:
            UserError: the run has no such task, or it has no `predict`.
        """
        if tasks is None:
            return [name for name, task in self._tasks.items() if has_predict(task.expert)]
        if isinstance(tasks, str) or not all(isinstance(word, str) for word in tasks):
            raise TypeError(f"tasks must be a list of names, such as ['asr'], not {tasks!r}")
        names = [self._loaded(word) for word in tasks]
        for name in names:
            if not has_predict(self._tasks[name].expert):
                raise no_predict_error(name, type(self._tasks[name].expert))
        return list(dict.fromkeys(names))

    def verify(
        self, first: Audio, second: Audio, task: str = "sv", sample_rate: int = SAMPLE_RATE
    ) -> float:
        """The similarity of the speakers of two utterances: the cosine of their embeddings.

        Args:
            first: a path or a waveform, as in :meth:`predict`.
            second: the other one.
            task: a task whose answers have an `embedding`.
            sample_rate: of the waveforms.

        Returns:
            between -1 and 1; the right threshold depends on the run.

        Raises:
            UserError: as :meth:`embedding`.
        """
        one, other = (self.embedding(audio, task, sample_rate) for audio in (first, second))
        return float(one @ other)

    def embedding(self, audio: Audio, task: str = "sv", sample_rate: int = SAMPLE_RATE) -> Tensor:
        """The embedding (width,) of the speaker of an utterance, of length 1.

        Args:
            audio: a path or a waveform, as in :meth:`predict`.
            task: a task whose answers have an `embedding`.
            sample_rate: of the waveform.

        Raises:
            UserError: as :meth:`predict`; the task has no embeddings, or the utterance is digital
                silence.
        """
        (name,) = self.predictable([task])
        waveform = as_waveform(audio, sample_rate)
        if not waveform.any():
            raise UserError(
                SILENCE,
                where=audio_name(audio),
                fix="Give a recording of the speaker.",
                code="audio-unreadable",
            )
        (answer,) = self.predict([waveform], [name])
        if "embedding" not in answer[name]:
            raise UserError(
                f"The answers of {task} have no `embedding`.",
                where=f"task {task}",
                fix="Use `sv`.",
                code="not-supported",
            )
        return torch.tensor(answer[name]["embedding"])

    @torch.no_grad()
    def features(self, audio: Sequence[Audio], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
        """The features (frames_i, D) of each utterance: the weighted sum of the layers.

        Raises:
            UserError, TypeError, ValueError: as :meth:`predict`.
        """
        waveforms = as_waveforms(audio, sample_rate)
        return self._encoder.features(waveforms) if waveforms else []

    def find(self, word: str) -> str | None:
        """The name in `tasks` of a task given by a name or alias, such as `asv`; None if unknown.

        Raises:
            UserError: the name fits several tasks.
        """
        return find_in_run(word, self._packages)

    def _loaded(self, word: str) -> str:
        name = require_in_run(word, {**self._packages, **dict.fromkeys(self._skipped)}, "tasks")
        if name in self._skipped:
            raise self._skipped[name]
        return name

    def _label(self, name: str) -> str:
        return task_label(name, self._packages[name])


def _place(wave: Tensor, versions: list[Tensor]) -> int:
    """The index of a waveform in the versions for the encoder, to which a new one is appended."""
    for place, known in enumerate(versions):
        if known is wave or (len(known) == len(wave) and torch.equal(known, wave)):
            return place
    versions.append(wave)
    return len(versions) - 1
