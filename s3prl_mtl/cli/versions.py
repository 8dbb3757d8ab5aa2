"""`--version`: the versions of all relevant packages, for bug reports."""

from __future__ import annotations

import argparse
from typing import Any

from s3prl_mtl.api.versions import versions


class ShowVersions(argparse.Action):
    """Print a line for each of `versions` and exit."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        text = "show the versions of s3prl-mtl, torch, CUDA and others"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for name, value in versions().items():
            print(f"{name} {value}")
        parser.exit()
