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
from s3prl_mtl.config import Config, build_config, resolve
from s3prl_mtl.data import MINIMUM_SAMPLES, SAMPLE_RATE, read_audio, resample
from s3prl_mtl.encoding import Encoding, layers, wants_hidden_states
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.plugins import split_name
from s3prl_mtl.s3prl_tasks.word import is_expert
from s3prl_mtl.snapshot import restore_weights
from s3prl_mtl.task import Task
from s3prl_mtl.task_words import Packages, find_held, packages_of, rivals_of, saved_package
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

    def __init__(
        self,
        encoding: Encoding,
        tasks: Mapping[str, Task],
        step: int,
        packages: Packages | None = None,
    ) -> None:
        self._encoding = encoding
        self._packages = packages or dict.fromkeys(tasks)
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
            tasks: which heads to ask, by any word for them (`asv`); None asks all.
            sample_rate: of the waveforms (files have their own).

        Returns:
            for each utterance {task: answer}, the tasks by their names in `tasks` of the run:
            `asr` text · `pr` phones · `sf` text, slots · `ks`, `sid`, `er` class, probability ·
            `ic` action, object, location, probability · `sv` embedding · `sd` segments.

        Raises:
            UserError: an audio file that is none or is shorter than a frame (it is named, and
                nothing is answered), an unknown task, or one that gives no answers.
        """
        if isinstance(audio, str) or isinstance(tasks, str):
            raise TypeError("audio and tasks are lists: predict([file], tasks=[name])")
        wanted = [self._task(word).name for word in (self.tasks if tasks is None else tasks)]
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
            UserError: as :meth:`embedding`.
        """
        return float(self.embedding(first, task) @ self.embedding(second, task))

    def embedding(self, audio: Audio, task: str = "sv") -> Tensor:
        """What an utterance sounds like: an embedding (width,) of length 1.

        Args:
            audio: a path or a waveform, as in :meth:`predict`.
            task: a task whose answers have an `embedding`.

        Raises:
            UserError: as :meth:`predict`; the task has no embeddings, or the utterance is nothing
                but digital silence, in which nobody is to be heard.
        """
        name = self._task(task).name
        waveform = self._waveform(audio, SAMPLE_RATE)
        if not waveform.any():
            raise UserError(
                "The audio is nothing but silence: there is no speaker to recognise.",
                where=_origin(audio),
                fix="Give a recording of the speaker.",
            )
        (answer,) = self.predict([waveform], [name])
        if "embedding" not in answer[name]:
            raise UserError(f"{task} makes no embeddings to compare.", fix="Take `sv`.")
        return torch.tensor(answer[name]["embedding"])

    @torch.no_grad()
    def features(self, audio: Sequence[Audio], sample_rate: int = SAMPLE_RATE) -> list[Tensor]:
        """The features (frames_i, D) that heads get: the weighted sum of the encoder's layers."""
        return self._encoding.features([self._waveform(entry, sample_rate) for entry in audio])

    def find(self, word: str) -> str | None:
        """The name in `tasks` of the one that a word means, such as `asv`; None if it is none.

        Raises:
            UserError: the word means several.
        """
        return find_held(word, self._packages)

    def _task(self, word: str) -> Task:
        name = self.find(word)
        if name is None:
            raise UserError(
                f"The run has no task {word!r}.", where="tasks", fix=nearest(word, self.tasks)
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
            return read_utterance(audio)
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
        return _long_enough(resample(audio.float().cpu(), sample_rate), audio)


def load(
    run: str | os.PathLike[str], tasks: Sequence[str] | None = None, device: str = "auto"
) -> TrainedRun:
    """A trained run, ready for use. Nothing of its corpora is needed.

    Args:
        run: the folder of a run (its newest checkpoint), or one of its `.ckpt` files.
        tasks: which heads to load, by any word for them (`asv`, `package:ks`); None loads all.
        device: `auto`, `cpu`, `cuda` or `cuda:<number>`.

    Raises:
        UserError: there is no such run or task, the package of a task is not installed, or the
            checkpoint is damaged or of other code.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks is a list of names: load(run, tasks=[{tasks!r}])")
    saved, _ = checkpoints.load_newest(Path(run), flag="load", set_aside=False)
    packages = _packages(saved, list(saved["Tasks"]) if tasks is None else list(tasks), run)
    names = list(packages)
    config = _config(saved, packages, run)
    for name, package in packages.items():
        config[name]["package"] = package
    place = pick_device(device)
    upstream = build_upstream(config, saved).to(place)
    selection = config["upstream"]["feature_selection"]
    featurizer = Featurizer(upstream, selection).to(place)
    with tempfile.TemporaryDirectory() as folder:
        try:
            experts = build_experts(config, names, featurizer, Path(folder), saved)
        except UserError as error:
            raise _without_labels(error, saved, run) from error
    tasks_by_name = {
        name: Task.from_settings(name, expert.to(place), config[name])
        for name, expert in experts.items()
    }
    restore_weights(saved, upstream, featurizer, tasks_by_name.values())
    encoding = Encoding(upstream, featurizer, place, freeze=True, bf16=False)
    return TrainedRun(encoding, tasks_by_name, saved["Step"], packages)


def _packages(
    saved: checkpoints.Checkpoint, words: Sequence[str], run: str | os.PathLike[str]
) -> dict[str, str | None]:
    """The tasks of a checkpoint that words mean, and the packages that their plugins are of."""
    held = packages_of(saved["Config"], saved["Tasks"])
    packages: dict[str, str | None] = {}
    for word in words:
        name = find_held(word, held)
        if name is None:
            rivals = rivals_of(word, held)
            raise UserError(
                f"The run has no task {word!r}.",
                where=str(run),
                fix=f"It holds: {', '.join(rivals)}." if rivals else nearest(word, list(held)),
            )
        if is_expert(name):
            packages[name] = None
        else:
            packages[name] = saved_package(name, held[name] or split_name(word)[0])
    return packages


def _config(
    saved: checkpoints.Checkpoint, packages: Packages, run: str | os.PathLike[str]
) -> Config:
    """The config of a checkpoint, complete; that of the branch is a layer over the defaults."""
    if "Origin" not in saved:
        return resolve_without_data(saved["Config"])
    words = [f"{package}:{task}" for task, package in packages.items()]
    try:
        return resolve(build_config(flags={"downstream": words}, base=saved["Config"]))
    except UserError as error:
        raise _without_labels(error, saved, run) from error


def _without_labels(
    error: UserError, saved: checkpoints.Checkpoint, run: str | os.PathLike[str]
) -> UserError:
    """The same error; of a checkpoint without label spaces, with why corpora are needed."""
    if "Origin" not in saved:
        return error
    return UserError(
        f"The checkpoint is of {saved['Origin']}, which saves no label spaces: they are read from "
        f"the corpora of its config. {error}",
        where=str(run),
        fix="Have the corpora there, or train a run that starts from it (-i), "
        "which will hold them.",
    )


def resolve_without_data(config: Mapping[str, Any]) -> Config:
    """The config of a run, its references filled in also where the corpora are not set here."""
    return resolve({**config, "data": config.get("data") or ""})


def read_utterance(path: str | os.PathLike[str]) -> Tensor:
    """The waveform of a file for a trained run: mono, 16 kHz, of at least one frame.

    Raises:
        UserError: names the file: it is gone, a folder, no audio, empty, damaged or too short.
    """
    if os.path.isdir(path):
        raise UserError(
            "It is a folder, not an audio file.", where=str(path), fix="Name its files."
        )
    return _long_enough(read_audio(path), path)


def _long_enough(waveform: Tensor, audio: Audio) -> Tensor:
    if len(waveform) < MINIMUM_SAMPLES:
        raise UserError(
            f"The audio has {len(waveform)} samples at 16 kHz, too few for a frame of the encoder.",
            where=_origin(audio),
            fix=f"Leave out what is shorter than {MINIMUM_SAMPLES} samples "
            f"({1000 * MINIMUM_SAMPLES // SAMPLE_RATE} ms).",
        )
    return waveform


def _origin(audio: Audio) -> str:
    return "a waveform" if isinstance(audio, Tensor) else str(audio)


def _place(wave: Tensor, versions: list[Tensor]) -> int:
    """Where a waveform is among those that go through the encoder; it joins them if it is new."""
    for place, known in enumerate(versions):
        if known is wave or (len(known) == len(wave) and torch.equal(known, wave)):
            return place
    versions.append(wave)
    return len(versions) - 1
