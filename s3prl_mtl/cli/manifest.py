"""`manifest`: write the corpus of a task as tables, an example of own data."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_mtl.cli.parser import add_data_roots, call
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK", help="an installed task")
    add_data_roots(parser)
    parser.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="a folder")


def run(arguments: argparse.Namespace) -> None:
    """Write a CSV file for each split, and print the flags that train on them.

    Raises:
        UserError: the corpus is missing, or the task takes no tables.
    """
    from s3prl_mtl.api.corpora import manifest

    written = call(manifest, arguments)
    ((name, tables),) = written.manifest.items()
    for split, path in tables.items():
        OUTPUT.print(f"{path}: {written.rows[split]} rows", markup=False, soft_wrap=True)
    flags = f"--manifest {name}:{','.join(f'{split}={path}' for split, path in tables.items())}"
    if written.settings:
        flags += f" -o {',,'.join(f'{key}={file}' for key, file in written.settings.items())}"
    OUTPUT.print(flags, markup=False, soft_wrap=True)
