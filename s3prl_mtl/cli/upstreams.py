"""`upstreams`: the installed upstreams."""

from __future__ import annotations

import argparse

from s3prl_mtl.authoring.listing import list_upstreams

DESCRIPTION = "List the installed upstreams."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(arguments: argparse.Namespace) -> None:
    list_upstreams()
