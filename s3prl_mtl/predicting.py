"""`predict`: what the heads of a trained run say of audio files, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.task_words import split_words
from s3prl_mtl.trained import TrainedRun, load, read_utterance

MAXIMUM_BATCH = 8
"""Files that go through the encoder together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `predict`."""
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    parser.add_argument("audio", type=Path, nargs="+", help="audio files")
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,...; all of the run by default")
    parser.add_argument("--rttm", type=Path, metavar="FILE", help="write who speaks when (sd)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="score (sv) every file against this speaker"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def predict(arguments: argparse.Namespace) -> None:
    """Write a line of JSON for every file: `file`, and the answer of each task.

    A file that cannot be read, that is too short, or that the encoder refuses, gets a line with
    `error`, and the others go on. That of `--against` is needed for all: nothing is said without.

    Raises:
        UserError: the run or a task is not there, or the file of `--against` cannot be used; in the
            end, that files have no answer.
    """
    tasks = split_words(arguments.task, flag="--task") if arguments.task else None
    names = recording_names(arguments.audio) if arguments.rttm else {}
    with _opened(arguments.rttm) as rttm:
        run = load(arguments.run, tasks, arguments.device)
        for flag, task in (("--rttm", "sd"), ("--against", "sv")):
            if getattr(arguments, flag.removeprefix("--")) and run.find(task) is None:
                raise UserError(
                    f"{flag} needs the task {task}.", where=flag, fix=f"--task ...,{task}"
                )
        diarization = run.find("sd")
        failed = 0
        for line in answers(run, arguments.audio, arguments.against):
            failed += "error" in line
            sys.stdout.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()
            if rttm is not None and diarization is not None and "error" not in line:
                write_rttm(rttm, names[line["file"]], line[diarization]["segments"])
    if failed:
        raise UserError(
            f"{failed} of {len(arguments.audio)} files have no answer; their lines say why."
        )


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO | None]:
    """A file to write to, if one is asked for; before the run is loaded, which takes longer."""
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as cause:
        raise UserError(
            f"The file cannot be written: {cause.strerror}.", where=f"--rttm {path}"
        ) from cause
    with file:
        yield file


def recording_names(files: Sequence[Path]) -> dict[str, str]:
    """What RTTM calls each file: its stem without white space, its path where two share a stem."""
    stems = Counter(file.stem for file in files)
    return {
        str(file): "_".join((file.stem if stems[file.stem] == 1 else str(file)).split())
        for file in files
    }


def answers(
    run: TrainedRun, files: Sequence[Path], against: Path | None = None
) -> Iterator[dict[str, Any]]:
    """For each file, in the order given, what the heads say of it, or why they say nothing."""
    speaker, voice = None, run.find("sv")
    if against is not None and voice is not None:
        try:
            speaker = run.embedding(against, voice)
        except UserError as error:
            raise UserError(error.what, where=f"--against {against}", fix=error.fix) from error
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
        for line, answer in zip(readable, _answers_of(run, waveforms), strict=True):
            line |= answer
            if speaker is not None and voice in answer:
                line[voice]["score"] = float(torch.tensor(line[voice]["embedding"]) @ speaker)
        yield from lines


def _answers_of(run: TrainedRun, waveforms: Sequence[Tensor]) -> list[dict[str, Any]]:
    """What the heads say, all at once; one by one where the encoder refuses one of them."""
    try:
        return run.predict(waveforms)
    except UserError as error:
        if len(waveforms) == 1:
            return [{"error": str(error)}]
    return [answer for waveform in waveforms for answer in _answers_of(run, [waveform])]


def write_rttm(file: TextIO, recording: str, segments: Sequence[dict[str, Any]]) -> None:
    """The segments of a recording as lines of NIST's rich transcription time marks."""
    for segment in segments:
        duration = segment["end"] - segment["start"]
        file.write(
            f"SPEAKER {recording} 1 {segment['start']:.3f} {duration:.3f} <NA> <NA> "
            f"speaker{segment['speaker']} <NA> <NA>\n"
        )
