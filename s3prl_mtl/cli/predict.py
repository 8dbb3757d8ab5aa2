"""`predict`: the predictions of a trained run for audio files, as JSON lines."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.cli.parser import add_trust
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import split_specs

if TYPE_CHECKING:
    from torch import Tensor

    from s3prl_mtl.inference.trained import TrainedRun

logger = logging.getLogger(__name__)

MAXIMUM_BATCH = 8
"""Files that are encoded together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    parser.add_argument("audio", type=Path, nargs="+", help="audio files, or folders of them")
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,... (default: all of the run)")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write here, with absolute paths"
    )
    parser.add_argument("--rttm", type=Path, metavar="FILE", help="write speaker segments (sd)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="score every file against this speaker (sv)"
    )
    parser.add_argument(
        "--decoder", metavar="NAME=VALUE,...", help="decode asr by lm=FILE,lexicon=FILE,beam=N,..."
    )
    parser.add_argument(
        "--nbest", type=int, default=1, metavar="N", help="transcripts of a file (with an lm)"
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="add the times of words (asr), phones (pr)"
    )
    parser.add_argument("--ctm", type=Path, metavar="FILE", help="write the times of asr, or pr")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print a line of JSON for every file: `file`, and the prediction of each task.

    The line of a file that cannot be read, is too short, or is refused by the encoder or a head has
    `error` instead; the remaining files are still predicted. The file of `--against`
    must be usable. With `--out` the lines are a file, which is there when it is complete.

    Raises:
        UserError: the run or a task does not exist, no task makes predictions, the file of `--rttm`
            or `--against` cannot be used, or `--out` exists; at the end, if any file has an error.
    """
    from s3prl_mtl.fileio.atomic import atomic_path
    from s3prl_mtl.inference.ctm import SUFFIX as CTM
    from s3prl_mtl.inference.ctm import write_ctm
    from s3prl_mtl.inference.loading import load_run
    from s3prl_mtl.inference.rttm import marks_file, recording_names, write_rttm
    from s3prl_mtl.inference.transcribing import Transcribing, parse_decoder

    tasks = split_specs(arguments.task, flag="--task") if arguments.task else None
    audio = _files(arguments.audio)
    if arguments.out is not None:
        if os.path.lexists(arguments.out):
            raise UserError(
                f"{arguments.out} exists and is not overwritten.",
                where=f"--out {arguments.out}",
                fix="Choose another name, or remove it first.",
                code="file-exists",
            )
        audio = [Path(os.path.abspath(file)) for file in audio]
    names = recording_names(audio) if arguments.rttm or arguments.ctm else {}
    transcribing = Transcribing(
        parse_decoder(arguments.decoder, "--decoder") if arguments.decoder else None,
        arguments.nbest,
        arguments.timestamps or arguments.ctm is not None,
    )
    # Open the files before loading the run, to fail early if they are not writable.
    with (
        marks_file(arguments.rttm) if arguments.rttm else nullcontext() as rttm,
        marks_file(arguments.ctm, CTM) if arguments.ctm else nullcontext() as ctm,
        atomic_path(arguments.out) if arguments.out else nullcontext() as partial,
        partial.open("w", encoding="utf-8") if partial else nullcontext() as out,
    ):
        trained = load_run(
            arguments.run,
            tasks,
            arguments.device,
            where="predict",
            transcribing=transcribing,
            trust_remote_code=arguments.trust_remote_code,
        )
        wanted = trained.predictable(None if tasks is None else trained.tasks)
        if not wanted:
            raise UserError(
                "No task of the run makes predictions.",
                where=str(arguments.run),
                code="not-supported",
            )
        for flag, task in (("--rttm", "sd"), ("--against", "sv")):
            given = getattr(arguments, flag.removeprefix("--"))
            if given is not None and trained.find(task) not in wanted:
                raise UserError(
                    f"{flag} needs the task {task}.",
                    where=flag,
                    fix=f"--task ...,{task}",
                    code="missing-option",
                )
        diarization = trained.find("sd")
        timed = next((name for name in map(trained.find, ("asr", "pr")) if name in wanted), None)
        if ctm is not None and timed is None:
            raise UserError(
                "--ctm needs the task asr or pr.",
                where="--ctm",
                fix="--task ...,asr",
                code="missing-option",
            )
        failed: list[str] = []
        for line in predictions(trained, audio, wanted, arguments.against):
            if "error" in line:
                failed.append(line["file"])
            text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
            if out is None:
                _write(text)
            else:
                out.write(text)
            # A file given twice is written once.
            recording = names.get(line["file"])
            if recording is None or "error" in line:
                continue
            if rttm is not None and diarization in line:
                write_rttm(rttm, recording, line[diarization], diarization)
            if ctm is not None and timed in line:
                write_ctm(ctm, recording, line[timed])
            names = {file: name for file, name in names.items() if name != recording}
    if failed:
        raise UserError(
            f"{len(failed)} of {len(audio)} files have no prediction: see `error` in their lines.",
            where=", ".join(failed[:3]) + (", ..." if len(failed) > 3 else ""),
            code="audio-unreadable",
        )


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and all audio files below the folders; a folder without any stays as it is."""
    from s3prl_mtl.data import list_audio

    files: list[Path] = []
    for path in paths:
        found = [path / name for name in list_audio(path)] if path.is_dir() else []
        files += found or [path]
    return files


def _write(text: str) -> None:
    """Write to the standard output; exit if its reader, such as `head`, has closed it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


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
