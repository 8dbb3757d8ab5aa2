"""`predict`: the predictions of a trained run for audio files, as JSON lines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from s3prl_mtl.cli.parser import call


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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def run(arguments: argparse.Namespace) -> None:
    """Print a line of JSON for every file: `file`, and the prediction of each task, or `error`.

    With `--out` the lines are a file, which is there when it is complete.

    Raises:
        UserError: of `s3prl_mtl.api.predict`; at the end, if any file has an error.
    """
    from s3prl_mtl.api.prediction import json_line, predict

    def show(line: dict[str, Any]) -> None:
        if arguments.out is None:
            _write(json_line(line))

    call(predict, arguments, on_line=show).require_all()


def _write(text: str) -> None:
    """Write to the standard output; exit if its reader, such as `head`, has closed it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
