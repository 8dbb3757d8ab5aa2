"""`make-corpus`: synthesise the mini corpus."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from s3prl_mtl.tracking.console import MESSAGES, OUTPUT

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=["tiny", "mini"], default="mini")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus, with a progress bar on a terminal; keep one that is already there."""
    from rich.progress import Progress

    from s3prl_mtl.data import mini_corpus

    logger.info("Making the %s corpus in %s.", arguments.size, arguments.directory)
    with Progress(console=MESSAGES, disable=not MESSAGES.is_terminal) as progress:
        bar = progress.add_task("synthesising", total=None)
        mini_corpus.make_corpus(
            arguments.directory,
            size=arguments.size,
            seed=arguments.seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    OUTPUT.print(f"The corpus is in {arguments.directory}; pass it with --data.", soft_wrap=True)
