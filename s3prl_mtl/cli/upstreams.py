"""`upstreams`: list the installed upstreams, with their packages and problems."""

from __future__ import annotations

import argparse

from rich.table import Column, Table

from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every encoder of s3prl's zoo")


def run(arguments: argparse.Namespace) -> None:
    """Print every installed upstream, and what is broken."""
    from s3prl_mtl.api.listings import s3prl_release, upstreams
    from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names

    names = [Column(title, no_wrap=True) for title in ("upstream", "package")]
    table = Table(*names, "description", "state")
    found = upstreams()
    for entry in found:
        state = "broken" if entry.error else "ok"
        table.add_row(entry.name, entry.package, entry.description, state)
    OUTPUT.print(table)
    for entry in found:
        if entry.error:
            OUTPUT.print(entry.error, markup=False, soft_wrap=True)
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
