"""`predict`: what the heads of a trained run say of audio files, as JSON lines."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.audio_input import NOBODY_SPEAKS, read_utterance
from s3prl_mtl.inference.loading import load_run
from s3prl_mtl.inference.rttm import recording_names, rttm_file, write_rttm
from s3prl_mtl.inference.trained import TrainedRun
from s3prl_mtl.registry.task_names import split_specs

logger = logging.getLogger(__name__)

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

    A file that cannot be read, that is too short, or that the encoder or a head refuses, gets a
    line with `error`, and the others go on. That of `--against` is needed for all: nothing is said
    without.

    Raises:
        UserError: the run or a task is not there, no task gives answers, or the file of `--rttm`
            or `--against` cannot be used; in the end, that files have no answer.
    """
    tasks = split_specs(arguments.task, flag="--task") if arguments.task else None
    names = recording_names(arguments.audio) if arguments.rttm else {}
    # Before the run is loaded, which takes longer than to see that it cannot be written.
    with rttm_file(arguments.rttm) if arguments.rttm else nullcontext() as rttm:
        run = load_run(arguments.run, tasks, arguments.device, where="predict")
        wanted = run.answering(None if tasks is None else run.tasks)
        if not wanted:
            raise UserError("No task of the run gives answers.", where=str(arguments.run))
        for flag, task in (("--rttm", "sd"), ("--against", "sv")):
            given = getattr(arguments, flag.removeprefix("--"))
            if given is not None and run.find(task) not in wanted:
                raise UserError(
                    f"{flag} needs the task {task}.", where=flag, fix=f"--task ...,{task}"
                )
        diarization = run.find("sd")
        failed = 0
        for line in answers(run, arguments.audio, wanted, arguments.against):
            failed += "error" in line
            _write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            # A file that is named twice is one recording: its name is taken away.
            if rttm is not None and diarization in line and line["file"] in names:
                recording = names[line["file"]]
                write_rttm(rttm, recording, line[diarization], diarization)
                names = {file: name for file, name in names.items() if name != recording}
    if failed:
        raise UserError(
            f"{failed} of {len(arguments.audio)} files have no answer; their lines say why."
        )


def _write(text: str) -> None:
    """Write to the output; a reader that has had enough, as `head` has, ends the program."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would flush once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def answers(
    run: TrainedRun, files: Sequence[Path], tasks: Sequence[str], against: Path | None = None
) -> Iterator[dict[str, Any]]:
    """For each file, in the order given, what the heads say of it, or why they say nothing.

    Args:
        run: whose heads.
        files: audio.
        tasks: names of those that give answers.
        against: a recording of the speaker that the others are scored against.
    """
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
        said = _answers_of(run, waveforms, tasks)
        for line, waveform, answer in zip(readable, waveforms, said, strict=True):
            line |= answer
            if speaker is None or voice not in answer:
                continue
            if waveform.any():
                line[voice]["score"] = float(torch.tensor(line[voice]["embedding"]) @ speaker)
            else:
                line[voice]["no_score"] = NOBODY_SPEAKS
        yield from lines


def _answers_of(
    run: TrainedRun, waveforms: Sequence[Tensor], tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """What the heads say, all at once; one by one where one of the files is refused."""
    try:
        return list(run.predict(waveforms, tasks))
    except UserError as error:
        logger.debug("%s", error, exc_info=True)
        if len(waveforms) == 1:
            return [{"error": str(error)}]
    return [answer for wave in waveforms for answer in _answers_of(run, [wave], tasks)]
