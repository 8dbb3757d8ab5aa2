"""A trained run in use: one pass of the encoder, and the answers of all heads asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl.assembly import build_experts, build_upstream, pick_device
from s3prl_mtl.config import Config, resolve
from s3prl_mtl.data import SAMPLE_RATE, read_audio, resample
from s3prl_mtl.encoding import Encoding, layers, wants_hidden_states
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.snapshot import restore_weights
from s3prl_mtl.task import Task
from s3prl_mtl.upstreams import Featurizer

Audio = str | os.PathLike[str] | Tensor
Answer = dict[str, Any]
"""{task: what its head says}, plain JSON values."""


class TrainedRun:
    """The encoder and the heads of a run, without its corpora. :func:`load` makes one.

    Attributes:
        tasks: names of the tasks that were loaded, in the run's order.
        labels: their label spaces.
        step: of the weights.
    """

    def __init__(self, encoding: Encoding, tasks: Mapping[str, Task], step: int) -> None:
        self._encoding = encoding
        self._tasks = dict(tasks)
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
    ) -> list[Answer]:
        """What the heads say of utterances.

        All utterances go through the encoder together, once for all tasks; a task that wants a
        waveform at another level or without its silences adds that version to the same pass.

        Args:
            audio: paths of audio files, or waveforms (samples,) in [-1, 1].
            tasks: which heads to ask; None asks all.
            sample_rate: of the waveforms (files have their own).

        Returns:
            for each utterance {task: answer}: `asr` text · `pr` phones · `sf` text, slots · `ks`,
            `sid`, `er` class, probability · `ic` action, object, location, probability · `sv`
            embedding · `sd` segments.

        Raises:
            UserError: an audio file that is none, an unknown task, or one that gives no answers.
        """
        if isinstance(audio, str) or isinstance(tasks, str):
            raise TypeError("audio and tasks are lists: predict([file], tasks=[name])")
        wanted = list(tasks) if tasks is not None else self.tasks
        for name in wanted:
            self._task(name)
        if not audio:
            return []
        waveforms = [self._waveform(entry, sample_rate) for entry in audio]
        versions: list[Tensor] = []
        places: dict[str, list[int]] = {}
        for name in wanted:
            expert = self._tasks[name].expert
            conditioned = [
                expert.condition(w) if hasattr(expert, "condition") else w for w in waveforms
            ]
            places[name] = [_place(wave, versions) for wave in conditioned]
        hidden = self._encoding.hidden_states(versions)
        features = self._encoding.weighted(hidden)
        answers: list[Answer] = [{} for _ in audio]
        for name in wanted:
            inputs = layers(hidden) if wants_hidden_states(self._tasks[name].expert) else features
            own = [inputs[place] for place in places[name]]
            lengths = [len(versions[place]) for place in places[name]]
            said = self._tasks[name].expert.predict(own, lengths)
            for answer, what in zip(answers, said, strict=True):
                answer[name] = what
        return answers

    def verify(self, first: Audio, second: Audio, task: str = "sv") -> float:
        """How much two utterances sound like one speaker: the cosine of their embeddings.

        Args:
            first, second: paths or waveforms, as in :meth:`predict`.
            task: a task whose answers have an `embedding`.

        Returns:
            between -1 and 1; what a threshold should be depends on the run.

        Raises:
            UserError: as :meth:`predict`; or the task has no embeddings.
        """
        embeddings = [answer[task] for answer in self.predict([first, second], [task])]
        if "embedding" not in embeddings[0]:
            raise UserError(f"{task} makes no embeddings to compare.", fix="Take `sv`.")
        one, other = (torch.tensor(entry["embedding"]) for entry in embeddings)
        return float(one @ other)

    @torch.no_grad()
    def features(self, audio: Sequence[Audio], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
        """The features (frames_i, D) that heads get: the weighted sum of the encoder's layers."""
        return self._encoding.features([self._waveform(entry, sample_rate) for entry in audio])

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            raise UserError(
                f"The run has no task {name!r}.", where="tasks", fix=nearest(name, self.tasks)
            )
        task = self._tasks[name]
        if not hasattr(task.expert, "predict"):
            raise UserError(
                f"The expert of {name} gives no answers for audio without labels.",
                where=f"{type(task.expert).__module__}.{type(task.expert).__qualname__}",
                fix="Its class has to define `predict` (see docs/plugins.md).",
            )
        return task

    def _waveform(self, audio: Audio, sample_rate: int) -> Tensor:
        if isinstance(audio, str | os.PathLike):
            return read_audio(audio)
        if not isinstance(audio, Tensor):
            raise TypeError(f"audio is a path or a waveform, not {type(audio).__name__}")
        if audio.dim() != 1 or not audio.is_floating_point() or not len(audio):
            raise ValueError(
                "a waveform is a 1-D tensor of floats, not empty, and not "
                f"{tuple(audio.shape)} of {audio.dtype}"
            )
        if not audio.isfinite().all():
            raise ValueError("a waveform holds values that are not finite")
        if sample_rate < 1:
            raise ValueError(f"a sample rate of {sample_rate} samples a second")
        return resample(audio.float().cpu(), sample_rate)


def load(
    run: str | os.PathLike[str], tasks: Sequence[str] | None = None, device: str = "auto"
) -> TrainedRun:
    """A trained run, ready for use. Nothing of its corpora is needed.

    Args:
        run: the folder of a run (its newest checkpoint), or one of its `.ckpt` files.
        tasks: which heads to load; None loads all.
        device: `auto`, `cpu`, `cuda` or `cuda:<number>`.

    Raises:
        UserError: there is no such run or task, or the checkpoint is damaged or of other code.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks is a list of names: load(run, tasks=[{tasks!r}])")
    saved, _ = checkpoints.load_newest(Path(run), flag="load", set_aside=False)
    names = list(saved["Tasks"]) if tasks is None else list(tasks)
    for name in names:
        if name not in saved["Tasks"]:
            raise UserError(
                f"The run has no task {name!r}.", where=str(run), fix=nearest(name, saved["Tasks"])
            )
    config = resolve_without_data(saved["Config"])
    place = pick_device(device)
    upstream = build_upstream(config, saved).to(place)
    selection = config["upstream"]["feature_selection"]
    featurizer = Featurizer(upstream, selection).to(place)
    with tempfile.TemporaryDirectory() as folder:
        experts = build_experts(config, names, featurizer, Path(folder), saved)
    tasks_by_name = {
        name: Task.from_settings(name, expert.to(place), config[name])
        for name, expert in experts.items()
    }
    restore_weights(saved, upstream, featurizer, tasks_by_name.values())
    encoding = Encoding(upstream, featurizer, place, freeze=True, bf16=False)
    return TrainedRun(encoding, tasks_by_name, saved["Step"])


def resolve_without_data(config: Mapping[str, Any]) -> Config:
    """The config of a run, its references filled in also where the corpora are not set here."""
    return resolve({**config, "data": config.get("data") or ""})


def _place(wave: Tensor, versions: list[Tensor]) -> int:
    """Where a waveform is among those that go through the encoder; it joins them if it is new."""
    for place, known in enumerate(versions):
        if known is wave or (len(known) == len(wave) and torch.equal(known, wave)):
            return place
    versions.append(wave)
    return len(versions) - 1
