"""`demo`: a study of the nine tasks of the mini corpus."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from s3prl_mtl.cli import make_corpus

# Whatever the environment says: the matrix products of the demo are too small for two threads,
# which would wait for each other, spinning, during half of a step.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

LEFT_OUT = "asr"
"""The task of the pair of (b-2) and (c): without the most expensive one, (b-2) is done first, and
(c) is trained beside the end of (b-1)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(".demo"),
        help="for corpus and study (default: .demo); an interrupted demo is resumed there",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="leave each task out in turn, not only one: 28 trainings in place of 12",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of every training, for tests")


def run(arguments: argparse.Namespace) -> None:
    """Make the corpus; continue as the study, with its exit code."""
    folder = arguments.folder
    corpus = folder / "corpus"
    make_corpus.run(argparse.Namespace(directory=corpus, size="mini", seed=0))
    words = ["study", str(folder), "-u", "hubert_tiny", "-d", "all"]
    words += ["--frozen_config", "demo", "--frozen_config", "demo_frozen", "--joint_config", "demo"]
    words += ["--data", str(corpus), "--cache_dir", str(folder / "cache"), "--jobs", "2"]
    if arguments.full:
        words += ["--leave_out", "all"]
    elif not (folder / "study.json").is_file():  # a full demo goes on as such
        words += ["--leave_out", LEFT_OUT]
    words += ["--steps", str(arguments.steps)] if arguments.steps else []
    command = [sys.executable, "-m", "s3prl_mtl", *words]
    sys.stdout.flush()
    # Not a child process: signals reach the study alone, which lets its runs save.
    os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
