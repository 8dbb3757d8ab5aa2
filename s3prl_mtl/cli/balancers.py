"""`balancers`: list the methods that combine several tasks, and what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table

from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.api.listings import ListedBalancer

ANY_OPTION = {"fixed": "TASK=WEIGHT"}
"""Form of the options of a balancer that takes any."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(_arguments: argparse.Namespace) -> None:
    """Print every balancer, with its options."""
    from s3prl_mtl.api.listings import balancers

    names = [Column(title, no_wrap=True) for title in ("balancer", "combines", "package")]
    table = Table(*names, Column("options", overflow="fold"), "description")
    found = balancers()
    for entry in found:
        title = "broken" if entry.error else entry.description
        title += f" ({entry.needs})" if entry.needs else ""
        cells = (entry.name, entry.combines, entry.package, _options(entry), title)
        table.add_row(*map(escape, cells))  # extras of packages are in brackets
    OUTPUT.print(table)
    for entry in found:
        if entry.error:
            OUTPUT.print(entry.error, markup=False, soft_wrap=True)


def _options(entry: ListedBalancer) -> str:
    if entry.options is None:
        return ANY_OPTION.get(entry.name, "any")
    return ", ".join(f"{o} (required)" if o in entry.required else o for o in entry.options)
