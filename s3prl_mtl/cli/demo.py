"""`demo`: train on all nine tasks of the mini corpus."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from s3prl_mtl.cli import make_corpus

# Whatever the environment says: the matrix products of the demo are too small for two threads,
# which would wait for each other, spinning, during half of a step.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(".demo"),
        help="for corpus and run (default: .demo); an interrupted demo is resumed there",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="fewer than 900 steps")


def run(arguments: argparse.Namespace) -> None:
    """Make the corpus; continue as the torchrun of the training, with its exit code."""
    folder = arguments.folder
    corpus = folder / "corpus"
    make_corpus.run(argparse.Namespace(directory=corpus, size="mini", seed=0))
    words = ["-u", "hubert_tiny", "-d", "all", "-c", "demo", "--data", str(corpus)]
    words += ["--cache_dir", str(folder / "cache"), "-p", str(folder / "run"), "-a"]
    words += ["--steps", str(arguments.steps)] if arguments.steps else []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, "-m", "s3prl_mtl", "train", *words]
    sys.stdout.flush()
    # Not a child process: signals reach torchrun alone, which lets the ranks save the run.
    os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
