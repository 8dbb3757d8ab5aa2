"""Predictions of a run for audio files. The flags are in `s3prl_mtl/cli/predict.py`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.api.calls import PathLike, Words, callable_from_python, listed, split_tasks
from s3prl_mtl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from s3prl_mtl.inference.trained import TrainedRun

logger = logging.getLogger(__name__)

MAXIMUM_BATCH = 8
"""Files that are encoded together."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run for files.

    Attributes:
        lines: a dict for each file: `file`, and the prediction of each task, or `error`. Empty if
            `out` or `on_line` received them.
        failed: the files with an error.
        count: of the files.
    """

    lines: Sequence[dict[str, Any]]
    failed: Sequence[str]
    count: int

    def require_all(self) -> None:
        """Raise an error if a file has no prediction.

        Raises:
            UserError: names the first of them.
        """
        if self.failed:
            raise UserError(
                f"{len(self.failed)} of {self.count} files have no prediction: see `error` in "
                "their lines.",
                where=", ".join(self.failed[:3]) + (", ..." if len(self.failed) > 3 else ""),
                code="audio-unreadable",
            )


@callable_from_python
def predict(
    run: PathLike,
    audio: PathLike | Sequence[PathLike],
    *,
    task: Words | None = None,
    out: PathLike | None = None,
    rttm: PathLike | None = None,
    against: PathLike | None = None,
    device: str = "auto",
    on_line: Callable[[dict[str, Any]], object] | None = None,
) -> Predictions:
    """Predict audio files with the heads of a run: the command `predict`.

    A file that cannot be read, is too short, or is refused by the encoder or a head has `error`;
    the others are still predicted. `s3prl_mtl.load` takes waveforms, and keeps the weights.

    Args:
        run: the folder of a run, or one of its `.ckpt` files.
        audio: files, or folders of them.
        task: the tasks; by default all of the run that make predictions.
        out: write the lines here, as JSON with absolute paths; there when it is complete.
        rttm: write the segments of `sd` here.
        against: a recording of the speaker to score the files against (`sv`).
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        on_line: called with the line of each file as soon as it is predicted.

    Returns:
        the lines in the order of the files, and which failed.

    Raises:
        UserError: the run or a task does not exist, no task makes predictions, the file of `rttm`
            or `against` cannot be used, or `out` exists.
    """
    from s3prl_mtl.fileio.atomic import atomic_path
    from s3prl_mtl.inference.loading import load_run
    from s3prl_mtl.inference.rttm import recording_names, rttm_file, write_rttm

    tasks = split_tasks(task, "--task") if task else None
    files = _files([Path(path) for path in listed(audio)])
    if out is not None:
        if os.path.lexists(out):
            raise UserError(
                f"{out} exists and is not overwritten.",
                where=f"--out {out}",
                fix="Choose another name, or remove it first.",
                code="file-exists",
            )
        files = [Path(os.path.abspath(file)) for file in files]
    names = recording_names(files) if rttm else {}
    lines: list[dict[str, Any]] = []
    failed: list[str] = []
    # Open the files before loading the run, to fail early if they are not writable.
    with (
        rttm_file(Path(rttm)) if rttm else nullcontext() as segments,
        atomic_path(Path(out)) if out else nullcontext() as partial,
        partial.open("w", encoding="utf-8") if partial else nullcontext() as stream,
    ):
        trained = load_run(run, tasks, device, where="predict")
        wanted = trained.predictable(None if tasks is None else trained.tasks)
        if not wanted:
            raise UserError(
                "No task of the run makes predictions.", where=str(run), code="not-supported"
            )
        for flag, needed, given in (("--rttm", "sd", rttm), ("--against", "sv", against)):
            if given is not None and trained.find(needed) not in wanted:
                raise UserError(
                    f"{flag} needs the task {needed}.",
                    where=flag,
                    fix=f"--task ...,{needed}",
                    code="missing-option",
                )
        diarization = trained.find("sd")
        speaker = None if against is None else Path(against)
        for line in predictions(trained, files, wanted, speaker):
            if "error" in line:
                failed.append(line["file"])
            if stream is not None:
                stream.write(json_line(line))
            if on_line is not None:
                on_line(line)
            if stream is None and on_line is None:
                lines.append(line)
            # A file given twice is written once.
            if segments is not None and diarization in line and line["file"] in names:
                recording = names[line["file"]]
                write_rttm(segments, recording, line[diarization], diarization)
                names = {file: name for file, name in names.items() if name != recording}
    return Predictions(lines, failed, len(files))


def json_line(line: dict[str, Any]) -> str:
    """The line of a file, as text."""
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and all audio files below the folders; a folder without any stays as it is."""
    from s3prl_mtl.data import list_audio

    files: list[Path] = []
    for path in paths:
        found = [path / name for name in list_audio(path)] if path.is_dir() else []
        files += found or [path]
    return files


def predictions(
    run: TrainedRun, files: Sequence[Path], tasks: Sequence[str], against: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The line of each file, in order: its predictions by task, or its error.

    Args:
        run: the trained run.
        files: audio files.
        tasks: names of tasks that make predictions.
        against: a recording of the speaker to score (sv) the files against.

    Raises:
        UserError: `against` cannot be used.
    """
    import torch

    from s3prl_mtl.inference.audio_input import SILENCE, read_utterance

    speaker, voice = None, run.find("sv")
    if against is not None and voice is not None:
        try:
            speaker = run.embedding(against, voice)
        except UserError as error:
            raise UserError(
                error.what, where=f"--against {against}", fix=error.fix, code=error.code
            ) from error
    for first in range(0, len(files), MAXIMUM_BATCH):
        batch = files[first : first + MAXIMUM_BATCH]
        lines: list[dict[str, Any]] = [{"file": str(file)} for file in batch]
        waveforms, readable = [], []
        for line, file in zip(lines, batch, strict=True):
            try:
                waveforms.append(read_utterance(file))
                readable.append(line)
            except UserError as error:
                line["error"] = str(error)
        predicted = _predict(run, waveforms, tasks)
        for line, waveform, by_task in zip(readable, waveforms, predicted, strict=True):
            line |= by_task
            if speaker is None or voice not in by_task:
                continue
            if waveform.any():
                line[voice]["score"] = float(torch.tensor(line[voice]["embedding"]) @ speaker)
            else:
                line[voice]["no_score"] = SILENCE
        yield from lines


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
