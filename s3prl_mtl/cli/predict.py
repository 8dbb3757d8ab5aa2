"""`predict`: the predictions of a trained run for audio, as JSON lines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from s3prl_mtl.cli.parser import add_trust, call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    audio = parser.add_argument(
        "audio", type=Path, nargs="+", help="audio files, or folders of them"
    )
    # With "*", argparse of Python 3.11 takes no audio that follows a flag.
    audio.required = False
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="paths of audio, one in a line; - reads them"
    )
    parser.add_argument(
        "--stdin", action="store_true", help="read raw audio: 16 bit, little endian, mono"
    )
    parser.add_argument(
        "--rate", type=int, default=16_000, help="sample rate of --stdin, in Hz (16000)"
    )
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,... (default: all of the run)")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="output file, with absolute paths; to resume it, repeat the command",
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
    add_chunking(parser)
    parser.add_argument(
        "--batch_seconds", type=float, help="audio that is encoded together, in seconds (100)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1; or several: cuda:0,cuda:1"
    )
    add_trust(parser)


def add_chunking(parser: argparse.ArgumentParser) -> None:
    """Add the lengths of chunks: the arguments of `chunking_of`."""
    parser.add_argument(
        "--chunk_seconds", type=int, help="length of the chunks of longer audio (40)"
    )
    parser.add_argument("--overlap_seconds", type=int, help="overlap of neighbouring chunks (4)")


def run(arguments: argparse.Namespace) -> None:
    """Print a line of JSON for every file: `file`, and the prediction of each task, or `error`.

    With `--out` the lines are a file, which is there when it is complete; an interrupted one is
    continued. Audio of `--stdin` has a line for each chunk as it comes, then one for all.

    Raises:
        UserError: of `s3prl_mtl.api.predict`; at the end, if any file has an error.
    """
    from s3prl_mtl.api.prediction import json_line, predict

    def show(line: dict[str, Any]) -> None:
        if arguments.out is None:
            _write(json_line(line))

    # Lines on the same terminal show how far the work is.
    progress = arguments.out is not None or not sys.stdout.isatty()
    call(predict, arguments, on_line=show, progress=progress).require_all()


def _write(text: str) -> None:
    """Write to the standard output; exit if its reader, such as `head`, has closed it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
