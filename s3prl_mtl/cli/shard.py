"""`shard`: copy a folder of corpora, its audio into archives."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.tracking.console import MESSAGES, OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder of corpora (--data)")
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--shard_size", type=int, default=1000, help="files of an archive")
    parser.add_argument(
        "--url", help="where the archives will be read, such as s3://bucket/speech (default: OUT)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the folder, with a progress bar on a terminal."""
    from rich.progress import Progress

    from s3prl_mtl.data.archives import FOLDER
    from s3prl_mtl.data.shards import write_archives

    with Progress(console=MESSAGES, disable=not MESSAGES.is_terminal) as progress:
        bar = progress.add_task("copying", total=None)
        files, archives = write_archives(
            arguments.data,
            arguments.output,
            shard_size=arguments.shard_size,
            url=arguments.url,
            progress=lambda done: progress.update(bar, completed=done),
        )
    copy = f" Copy {arguments.output / FOLDER}/*.tar to {arguments.url}." if arguments.url else ""
    OUTPUT.print(
        f"{files} audio files are in {archives} archives of {arguments.output / FOLDER}.{copy} "
        f"Pass {arguments.output} with --data.",
        soft_wrap=True,
    )
