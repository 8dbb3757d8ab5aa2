"""`new-task`: write the package of a new task."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the task, for -d")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of the package")
    parser.add_argument(
        "--kind",
        choices=["classification", "regression", "frames", "ctc"],
        default="classification",
        help="output of the head: a class or a number for each utterance, a class for each frame, "
        "or a transcript (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the package; print its files and the next commands to type."""
    from s3prl_mtl.authoring.new_task import new_task, words_of

    name, directory = arguments.name, arguments.directory
    for path in new_task(name, directory, arguments.kind):
        OUTPUT.print(str(path), markup=False, highlight=False, soft_wrap=True)
    module = words_of(name)["module"]
    OUTPUT.print(f"Next (then adapt {module}/corpus.py):", markup=False)
    for step in (
        f"pip install -e {shlex.quote(str(directory))}",
        "s3prl-mtl make-corpus corpora --size tiny",
        f"s3prl-mtl check-task {name} --data corpora",
        f's3prl-mtl train -u hubert_tiny -d {name} --data corpora --steps 20 -o "scheduler=null"',
    ):
        OUTPUT.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)
