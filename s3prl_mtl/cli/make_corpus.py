"""`make-corpus`: synthesise the mini corpus."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=["tiny", "mini"], default="mini")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus, with a progress bar on a terminal; keep one that is already there."""
    from s3prl_mtl.api.corpora import make_corpus

    logger.info("Making the %s corpus in %s.", arguments.size, arguments.directory)
    folder = call(make_corpus, arguments, progress=None)
    OUTPUT.print(f"The corpus is in {folder}; pass it with --data.", soft_wrap=True)
