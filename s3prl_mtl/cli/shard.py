"""`shard`: copy a folder of corpora, its audio into archives."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import call
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder of corpora (--data)")
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--shard_size", type=int, default=1000, help="files of an archive")
    parser.add_argument(
        "--url",
        help="address of the archives for readers, such as s3://bucket/speech (default: OUT)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the folder, with a progress bar on a terminal."""
    from s3prl_mtl.api.corpora import shard

    made = call(shard, arguments, progress=None)
    copy = f" Copy {made.archives_folder}/*.tar to {arguments.url}." if arguments.url else ""
    OUTPUT.print(
        f"{made.files} audio files are in {made.archives} archives of {made.archives_folder}."
        f"{copy} Pass {made.folder} with --data.",
        soft_wrap=True,
    )
