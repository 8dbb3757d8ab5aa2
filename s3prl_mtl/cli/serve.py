"""`serve`: the predictions of a trained run over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import add_trust, call
from s3prl_mtl.cli.predict import add_chunking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or one of its .ckpt files")
    parser.add_argument("--task", metavar="TASKS", help="asr,ks,... (default: all of the run)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (8000)"
    )
    parser.add_argument(
        "--max_megabytes", type=float, default=100.0, help="maximum size of a request (100)"
    )
    parser.add_argument(
        "--max_seconds", type=float, default=3600.0, help="maximum length of its audio (3600)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="maximum seconds of a request (600)"
    )
    parser.add_argument(
        "--max_waiting", type=int, default=8, help="maximum number of waiting requests (8)"
    )
    add_chunking(parser)
    parser.add_argument(
        "--decoder", metavar="NAME=VALUE,...", help="decode asr by lm=FILE,lexicon=FILE,beam=N,..."
    )
    parser.add_argument(
        "--nbest", type=int, default=1, metavar="N", help="transcripts of a file (with an lm)"
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="add the times of words (asr), phones (pr)"
    )
    add_trust(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C, and print the address.

    Raises:
        UserError: of `s3prl_mtl.api.serve`.
    """
    from s3prl_mtl.api.service import serve
    from s3prl_mtl.tracking.console import OUTPUT

    call(serve, arguments, on_start=lambda address: OUTPUT.print(address, soft_wrap=True))
