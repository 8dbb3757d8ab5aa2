"""A trained run in use: one pass of the encoder, and the answers of all heads asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.audio_input import (
    NOBODY_SPEAKS,
    Audio,
    as_waveform,
    as_waveforms,
    origin_of,
)
from s3prl_mtl.inference.predictions import (
    Answer,
    ask,
    conditioned,
    gives_answers,
    named,
    no_answers,
)
from s3prl_mtl.registry.task_names import Packages, find_in_run, require_in_run
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states


class TrainedRun:
    """The encoder and the heads of a run, without its corpora. :func:`s3prl_mtl.load` makes one.

    Args:
        encoding: the encoder and the featurizer.
        tasks: those that were loaded.
        step: of the weights.
        packages: whose the tasks are.
        left_out: the tasks of the run that were not loaded although nobody left them out, and why.

    Attributes:
        tasks: names of the tasks that were loaded, in the run's order.
        labels: their label spaces.
        step: of the weights.
    """

    def __init__(
        self,
        encoding: SharedEncoder,
        tasks: Mapping[str, Task],
        step: int,
        packages: Packages,
        left_out: Mapping[str, UserError],
    ) -> None:
        self._encoding = encoding
        self._packages = dict(packages)
        self._tasks = dict(tasks)
        self._left_out = dict(left_out)
        self.step = step
        encoding.set_training(False)
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
        """What the heads say of utterances.

        All utterances go through the encoder together, once for all tasks; a task that wants a
        waveform at another level or without its silences adds that version to the same pass.

        Args:
            audio: paths of audio files, or waveforms (samples,) in [-1, 1].
            tasks: which heads to ask, by any word for them (`asv`); None asks all that give
                answers for audio without labels.
            sample_rate: of the waveforms (files have their own).

        Returns:
            for each utterance {task: answer}, the tasks by their names in `tasks` of the run:
            `asr` text · `pr` phones · `sf` text, slots · `ks`, `sid`, `er` class, probability ·
            `ic` action, object, location, probability · `sv` embedding · `sd` segments.

        Raises:
            UserError: an audio file that is none or is shorter than a frame (it is named, and
                nothing is answered), an unknown task, one that gives no answers, or whose answers
                are none (it is named, and its package).
            TypeError, ValueError: what is given is no list of audio, or no rate.
        """
        wanted = self.answering(tasks)
        waveforms = as_waveforms(audio, sample_rate)
        answers: list[dict[str, Answer]] = [{} for _ in waveforms]
        if not waveforms or not wanted:
            return answers
        versions: list[Tensor] = []
        places: dict[str, list[int]] = {}
        for name in wanted:
            own_waveforms = conditioned(self._tasks[name].expert, waveforms, self._whose(name))
            places[name] = [_place(wave, versions) for wave in own_waveforms]
        hidden = self._encoding.hidden_states(versions)
        features = self._encoding.weighted(hidden)
        for name in wanted:
            expert = self._tasks[name].expert
            inputs = layers(hidden) if wants_hidden_states(expert) else features
            own = [inputs[place] for place in places[name]]
            lengths = [len(versions[place]) for place in places[name]]
            said = ask(expert, own, lengths, self._whose(name))
            for answer, what in zip(answers, said, strict=True):
                answer[name] = what
        return answers

    def answering(self, tasks: Sequence[str] | None = None) -> list[str]:
        """The names of tasks that give answers for audio without labels.

        Args:
            tasks: words for tasks, each of which has to give answers; None takes all that do.

        Raises:
            UserError: the run has no such task, or it gives no answers.
        """
        if tasks is None:
            return [name for name, task in self._tasks.items() if gives_answers(task.expert)]
        if isinstance(tasks, str) or not all(isinstance(word, str) for word in tasks):
            raise TypeError(f"tasks is a list of names, such as ['asr'], and not {tasks!r}")
        names = [self._loaded(word) for word in tasks]
        for name in names:
            if not gives_answers(self._tasks[name].expert):
                raise no_answers(name, type(self._tasks[name].expert))
        return list(dict.fromkeys(names))

    def verify(
        self, first: Audio, second: Audio, task: str = "sv", sample_rate: int = SAMPLE_RATE
    ) -> float:
        """How much two utterances sound like one speaker: the cosine of their embeddings.

        Args:
            first: a path or a waveform, as in :meth:`predict`.
            second: the other one.
            task: a task whose answers have an `embedding`.
            sample_rate: of the waveforms.

        Returns:
            between -1 and 1; what a threshold should be depends on the run.

        Raises:
            UserError: as :meth:`embedding`.
        """
        one, other = (self.embedding(audio, task, sample_rate) for audio in (first, second))
        return float(one @ other)

    def embedding(self, audio: Audio, task: str = "sv", sample_rate: int = SAMPLE_RATE) -> Tensor:
        """What an utterance sounds like: an embedding (width,) of length 1.

        Args:
            audio: a path or a waveform, as in :meth:`predict`.
            task: a task whose answers have an `embedding`.
            sample_rate: of the waveform.

        Raises:
            UserError: as :meth:`predict`; the task has no embeddings, or the utterance is nothing
                but digital silence, in which nobody is to be heard.
        """
        (name,) = self.answering([task])
        waveform = as_waveform(audio, sample_rate)
        if not waveform.any():
            raise UserError(
                NOBODY_SPEAKS, where=origin_of(audio), fix="Give a recording of the speaker."
            )
        (answer,) = self.predict([waveform], [name])
        if "embedding" not in answer[name]:
            raise UserError(f"{task} makes no embeddings to compare.", fix="Take `sv`.")
        return torch.tensor(answer[name]["embedding"])

    @torch.no_grad()
    def features(self, audio: Sequence[Audio], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
        """The features (frames_i, D) that heads get: the weighted sum of the encoder's layers.

        Raises:
            UserError, TypeError, ValueError: as :meth:`predict`.
        """
        waveforms = as_waveforms(audio, sample_rate)
        return self._encoding.features(waveforms) if waveforms else []

    def find(self, word: str) -> str | None:
        """The name in `tasks` of the one that a word means, such as `asv`; None if it is none.

        Raises:
            UserError: the word means several.
        """
        return find_in_run(word, self._packages)

    def _loaded(self, word: str) -> str:
        name = require_in_run(word, {**self._packages, **dict.fromkeys(self._left_out)}, "tasks")
        if name in self._left_out:
            raise self._left_out[name]
        return name

    def _whose(self, name: str) -> str:
        return named(name, self._packages[name])


def _place(wave: Tensor, versions: list[Tensor]) -> int:
    """Where a waveform is among those that go through the encoder; it joins them if it is new."""
    for place, known in enumerate(versions):
        if known is wave or (len(known) == len(wave) and torch.equal(known, wave)):
            return place
    versions.append(wave)
    return len(versions) - 1
