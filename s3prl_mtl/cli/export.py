"""`export`: write the encoder of a run for another program."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder, or one of its .ckpt files")
    parser.add_argument(
        "--format", metavar="FORMAT", required=True, help="fairseq, transformers, s3prl or onnx"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file or folder to write")


def run(arguments: argparse.Namespace) -> None:
    """Write the file or folder and print its path."""
    from s3prl_mtl.api.encoders import export

    with exit_on_signals():
        path = call(export, arguments)
    OUTPUT.print(f"Wrote {path}", soft_wrap=True, markup=False, highlight=False)
