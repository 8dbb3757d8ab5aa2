"""`predict`: what the heads of a trained run say of audio files, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from s3prl_mtl.config import parse_tasks
from s3prl_mtl.data import MINIMUM_SAMPLES, UnreadableAudio, read_audio
from s3prl_mtl.errors import UserError
from s3prl_mtl.trained import TrainedRun, load

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

    A file that cannot be read gets a line with `error`, and the others go on.

    Raises:
        UserError: the run or a task is not there; in the end, that files could not be read.
    """
    tasks = parse_tasks(arguments.task) if arguments.task else None
    run = load(arguments.run, tasks, arguments.device)
    for flag, task in (("--rttm", "sd"), ("--against", "sv")):
        if getattr(arguments, flag.removeprefix("--")) and task not in run.tasks:
            raise UserError(f"{flag} needs the task {task}.", where=flag, fix=f"--task ...,{task}")
    failed = 0
    rttm = arguments.rttm.open("w", encoding="utf-8") if arguments.rttm else None
    try:
        for line in answers(run, arguments.audio, arguments.against):
            failed += "error" in line
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            if rttm is not None and "error" not in line:
                write_rttm(rttm, Path(line["file"]).stem, line["sd"]["segments"])
    finally:
        if rttm is not None:
            rttm.close()
    if failed:
        raise UserError(
            f"{failed} of {len(arguments.audio)} files could not be read; their lines say why.",
            fix="Give wav, flac, ogg, opus, mp3 or another format that libsndfile reads.",
        )


def answers(
    run: TrainedRun, files: Sequence[Path], against: Path | None = None
) -> Iterator[dict[str, Any]]:
    """For each file, in the order given, what the heads say of it, or why it cannot be read."""
    speaker = None
    if against is not None:
        speaker = torch.tensor(run.predict([against], ["sv"])[0]["sv"]["embedding"])
    for first in range(0, len(files), MAXIMUM_BATCH):
        batch = files[first : first + MAXIMUM_BATCH]
        lines: list[dict[str, Any]] = [{"file": str(file)} for file in batch]
        waveforms, readable = [], []
        for line, file in zip(lines, batch, strict=True):
            try:
                waveform = read_audio(file)
            except UnreadableAudio as error:
                line["error"] = str(error)
                continue
            if len(waveform) < MINIMUM_SAMPLES:
                line["error"] = f"{len(waveform)} samples are too short for the encoder."
                continue
            waveforms.append(waveform)
            readable.append(line)
        for line, answer in zip(readable, run.predict(waveforms), strict=True):
            line |= answer
        if speaker is not None:
            for line in readable:
                line["sv"]["score"] = float(torch.tensor(line["sv"]["embedding"]) @ speaker)
        yield from lines


def write_rttm(file: TextIO, recording: str, segments: Sequence[dict[str, Any]]) -> None:
    """The segments of a recording as lines of NIST's rich transcription time marks."""
    for segment in segments:
        duration = segment["end"] - segment["start"]
        file.write(
            f"SPEAKER {recording} 1 {segment['start']:.3f} {duration:.3f} <NA> <NA> "
            f"speaker{segment['speaker']} <NA> <NA>\n"
        )
