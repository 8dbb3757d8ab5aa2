"""`tasks`: list the installed tasks, with their packages and problems."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from rich.table import Column, Table

from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    parser.add_argument(
        "--all", action="store_true", help="s3prl's experts, and every problem of the corpora"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print every plugin, whether its data is present, and what is broken."""
    from s3prl_mtl.api.listings import s3prl_release, tasks
    from s3prl_mtl.s3prl_compat.folders import installed_experts

    # Names are copied into commands, so other columns wrap first.
    names = [Column(title, no_wrap=True) for title in ("task", "package")]
    table = Table(*names, "metric", Column("corpus", overflow="fold"), "data", "state")
    paragraphs: dict[str, str] = {}
    missing: dict[str, dict[str, Sequence[str]]] = {}
    for task in tasks(data=arguments.data):
        metrics = ", ".join(task.metrics)
        table.add_row(task.name, task.package, metrics, task.corpus, task.data, task.state)
        lines = task.problems if task.error is None else (task.error,)
        if lines and task.data == "missing" and not arguments.all:
            missing.setdefault(task.corpus, {})[task.name] = lines
        elif lines:
            paragraphs[task.name] = "\n  ".join(lines)
    OUTPUT.print(table)
    for name, paragraph in paragraphs.items():
        OUTPUT.print(f"{name}: {paragraph.removeprefix(f'{name}: ')}", markup=False, soft_wrap=True)
    for corpus, problems in missing.items():
        OUTPUT.print(_missing_corpus(corpus, problems), markup=False, soft_wrap=True)
    experts = installed_experts()
    if experts and not arguments.all:
        counted = f"{s3prl_release()} has {len(experts)} more, as s3prl:NAME; --all lists them."
        OUTPUT.print(counted, markup=False, soft_wrap=True)
    elif experts:
        listed = ", ".join(f"s3prl:{folder}" for folder in sorted(experts))
        text = (
            f"{s3prl_release()}'s own experts: {listed}. Which of them run: docs/s3prl-experts.md."
        )
        OUTPUT.print(text, markup=False, soft_wrap=True)
    if not (arguments.data or os.environ.get("SUPERB_DATA")):
        OUTPUT.print("Pass --data DIR (or set $SUPERB_DATA) to check the corpora.")


def _missing_corpus(corpus: str, problems: Mapping[str, Sequence[str]]) -> str:
    """One line for a corpus: its first problem, and the number of the others.

    Args:
        corpus: its title.
        problems: by task, at least one each.
    """
    ((task, lines), *_) = problems.items()
    first = lines[0].partition(": ")[2] or lines[0]
    count = len({line.partition(": ")[2] for lines in problems.values() for line in lines})
    others = f" ({count - 1} more with --all)" if count > 1 else ""
    return f"{corpus or task} ({', '.join(problems)}): {first.partition('; ')[0]}{others}"
