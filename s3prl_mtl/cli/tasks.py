"""`tasks`: list the installed tasks, with their packages and problems."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Column, Table

from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import Plugin, discover_tasks, load_task, task_defaults
from s3prl_mtl.s3prl_compat.folders import installed_experts
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    parser.add_argument(
        "--all", action="store_true", help="s3prl's experts, and every problem of the corpora"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print every plugin, whether its data is present, and what is broken."""
    # Names are copied into commands, so other columns wrap first.
    names = [Column(title, no_wrap=True) for title in ("task", "package")]
    table = Table(*names, "metric", "corpus", "data", "state")
    paragraphs: dict[str, str] = {}
    missing: dict[str, dict[str, list[str]]] = {}
    data = arguments.data or os.environ.get("SUPERB_DATA")
    tasks = discover_tasks()
    for name, plugin in tasks.items():
        try:
            cells, lines = _task_row(name, tasks, data)
        except (Exception, SystemExit) as cause:
            # A broken task of another package must not hide the others.
            cells, lines = ("", "", "", "broken"), [why_broken(cause, "Task", name, plugin)]
        table.add_row(name, str(plugin), *cells)
        _, corpus, present, _ = cells
        if lines and present == "missing" and not arguments.all:
            missing.setdefault(corpus, {})[name] = lines
        elif lines:
            paragraphs[name] = "\n  ".join(lines)
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
    if not data:
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


def _task_row(
    name: str, tasks: Mapping[str, Plugin], data: str | None
) -> tuple[tuple[str, ...], list[str]]:
    """The cells of a task after name and package, and the problems of its corpus.

    Raises:
        Exception: of any kind, if the task is broken.
    """
    from s3prl_mtl.tasks.contract import check_installed

    expert = load_task(name)
    task_defaults(name)
    check_installed(name, expert)
    metrics = _metrics(expert)
    present, lines = _data_state(name, expert, data)
    corpus = str(getattr(getattr(expert, "corpus_type", None), "title", ""))
    return (metrics, corpus, present, _state(name, expert, tasks)), lines


def why_broken(cause: BaseException, kind: str, name: str, plugin: Plugin) -> str:
    """The reason why a task or upstream cannot be loaded, with its package.

    Args:
        cause: raised while it was loaded.
        kind: `Task` or `Upstream`.
        name: of it.
        plugin: its entry point.
    """
    from s3prl_mtl.authoring.contract import failure_summary

    reason = str(cause) if isinstance(cause, UserError) else f"{failure_summary(cause)}."
    owner = f"of package {plugin.package}"
    return reason if owner in reason else f"{kind} {name!r} {owner} {plugin.version}: {reason}"


def _metrics(expert: type) -> str:
    """The titles of the metrics that the table of results shows."""
    from s3prl_mtl.tasks.metric import metrics_of

    metrics = metrics_of(expert)
    shown = [m.title for m in metrics if (m.headline and not m.optional) or m is metrics[0]]
    return ", ".join(map(str, shown))


def _state(name: str, expert: Any, tasks: Mapping[str, Plugin]) -> str:
    stated = getattr(expert, "name", None)
    if stated != name and stated in tasks:
        return f"alias of {stated}"
    if ":" in name and name not in (stated, f"s3prl:{stated}"):
        return "ok; two packages have this name"
    return "ok"


def _data_state(name: str, expert: Any, data: str | None) -> tuple[str, list[str]]:
    """Whether the corpus of a task is present, and its problems."""
    from s3prl_mtl.config import build_config, resolve

    check = getattr(expert, "problems", None)
    if check is None:
        return "unknown", []
    flags: dict[str, Any] = {"downstream": [name]}
    if data:
        flags["data"] = data
    try:
        config = resolve(build_config(flags=flags))
        (block,) = config.tasks.values()
        problems = check(block.downstream_expert)
    except UserError as mistake:
        return ("?", []) if not data else ("?", [str(mistake)])
    except Exception as error:
        return "?", [f"its check of the corpus failed: {type(error).__name__}: {error}."]
    return ("missing", problems) if problems else ("present", [])


def s3prl_release() -> str:
    """s3prl with its version, if it is installed rather than only on the path."""
    try:
        return f"s3prl {version('s3prl')}"
    except PackageNotFoundError:
        return "s3prl"
