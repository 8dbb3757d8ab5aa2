"""`merge`: interpolate the encoders of runs with the one that they were tuned from."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import exit_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        metavar="PRETRAINED",
        required=True,
        help="the encoder before tuning: name of an upstream, fairseq file, folder of "
        "transformers, or a run",
    )
    parser.add_argument(
        "--tuned",
        metavar="RUN",
        action="append",
        required=True,
        help="a run, one of its .ckpt files, a fairseq file, or a folder of transformers' HuBERT; "
        "may be repeated",
    )
    parser.add_argument(
        "--alpha",
        metavar="A[,A2,...]",
        required=True,
        help="base + alpha * (tuned - base). Several: a file for each, or one for each --tuned",
    )
    parser.add_argument(
        "--by_layer",
        action="store_true",
        help="alpha is FIRST:LAST, of the first and the last layer, linear in between",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help=".ckpt: the run with the merged encoder, for predict and evaluate; .pt: for -k",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the files and print their paths."""
    from s3prl_mtl.api.encoders import merge

    with exit_on_signals():
        paths = call(merge, arguments)
    for path in paths:
        OUTPUT.print(f"Wrote {path}", soft_wrap=True, markup=False, highlight=False)
