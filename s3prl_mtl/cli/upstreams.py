"""`upstreams`: list the installed upstreams, with their packages and problems."""

from __future__ import annotations

import argparse
import inspect
import re

from rich.table import Column, Table

from s3prl_mtl.cli.tasks import s3prl_release, why_broken
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import Plugin, discover_upstreams
from s3prl_mtl.tracking.console import OUTPUT

_MARKUP = re.compile(r"(?::[a-z:]+:)?`+~?([^`]*)`+")
"""References and code of a docstring: :class:`~a.B`, ``code`` and `code`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every encoder of s3prl's zoo")


def run(arguments: argparse.Namespace) -> None:
    """Print every installed upstream, and what is broken."""
    from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names

    names = [Column(title, no_wrap=True) for title in ("upstream", "package")]
    table = Table(*names, "description", "state")
    broken = []
    for name, plugin in discover_upstreams().items():
        try:
            table.add_row(name, str(plugin), _upstream_title(name, plugin), "ok")
        except (Exception, SystemExit) as cause:
            table.add_row(name, str(plugin), "", "broken")
            broken.append(why_broken(cause, "Upstream", name, plugin))
    OUTPUT.print(table)
    for paragraph in broken:
        OUTPUT.print(paragraph, markup=False, soft_wrap=True)
    OUTPUT.print("hf:PATH_OR_NAME: an encoder of Hugging Face, if transformers is installed.")
    zoo = zoo_names()
    if zoo and not arguments.all:
        counted = f"{s3prl_release()}'s zoo has {len(zoo)} more; --all lists them."
        OUTPUT.print(counted, markup=False, soft_wrap=True)
    elif zoo:
        listed = ", ".join(sorted(zoo))
        text = f"{s3prl_release()}'s zoo: {listed}. Which of them run: docs/upstreams.md."
        OUTPUT.print(text, markup=False, soft_wrap=True)
    else:
        OUTPUT.print("Install s3prl to use the encoders of its zoo.")


def _upstream_title(name: str, plugin: Plugin) -> str:
    """The first line of an upstream's docstring, without markup.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    factory = plugin.load()
    if not callable(factory):
        raise UserError(
            f"Upstream {name!r} of package {plugin} is a {type(factory).__name__}, not a function.",
            where=f"entry point {plugin.entry_point.value}",
            code="plugin-broken",
        )
    return _MARKUP.sub(r"\1", (inspect.getdoc(factory) or "").partition("\n")[0])
