"""List the installed tasks and upstreams with their packages and problems."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Column, Table

from s3prl_mtl.authoring.contract import failure_summary
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import (
    Plugin,
    discover_tasks,
    discover_upstreams,
    load_task,
    task_defaults,
)
from s3prl_mtl.s3prl_compat.folders import installed_experts
from s3prl_mtl.tasks.contract import check_installed
from s3prl_mtl.tasks.metric import metrics_of
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.upstreams.zoo.s3prl_hub import zoo_names

EXPERTS_PAGE = "docs/s3prl-experts.md"
ZOO_PAGE = "docs/upstreams.md"


def list_tasks(data: str | None) -> None:
    """Print every installed task, whether its data is present, and what is broken."""
    # Names are copied into commands, so other columns wrap first.
    names = [Column(title, no_wrap=True) for title in ("task", "package")]
    table = Table(*names, "metric", "corpus", "data", "state")
    paragraphs: dict[str, str] = {}
    data = data or os.environ.get("SUPERB_DATA")
    tasks = discover_tasks()
    for name, plugin in tasks.items():
        try:
            cells, lines = _task_row(name, tasks, data)
        except (Exception, SystemExit) as cause:
            # A broken task of another package must not hide the others.
            cells, lines = ("", "", "", "broken"), [_why_broken(cause, "Task", name, plugin)]
        table.add_row(name, str(plugin), *cells)
        if lines:
            paragraphs[name] = "\n  ".join(lines)
    OUTPUT.print(table)
    for name, paragraph in paragraphs.items():
        OUTPUT.print(f"{name}: {paragraph.removeprefix(f'{name}: ')}", markup=False, soft_wrap=True)
    experts = installed_experts()
    if experts:
        listed = ", ".join(f"s3prl:{folder}" for folder in sorted(experts))
        text = f"{_s3prl()}'s own experts: {listed}. Which of them run: {EXPERTS_PAGE}."
        OUTPUT.print(text, markup=False, soft_wrap=True)
    if not data:
        OUTPUT.print("Pass --data DIR (or set $SUPERB_DATA) to check the corpora.")


def _task_row(
    name: str, tasks: Mapping[str, Plugin], data: str | None
) -> tuple[tuple[str, ...], list[str]]:
    """The cells of a task after name and package, and the problems of its corpus.

    Raises:
        Exception: of any kind, if the task is broken.
    """
    expert = load_task(name)
    task_defaults(name)
    check_installed(name, expert)
    metrics = _metrics(expert)
    present, lines = _data_state(name, expert, data)
    corpus = str(getattr(getattr(expert, "corpus_type", None), "title", ""))
    return (metrics, corpus, present, _state(name, expert, tasks)), lines


def _why_broken(cause: BaseException, kind: str, name: str, plugin: Plugin) -> str:
    reason = str(cause) if isinstance(cause, UserError) else f"{failure_summary(cause)}."
    owner = f"of package {plugin.package}"
    return reason if owner in reason else f"{kind} {name!r} {owner} {plugin.version}: {reason}"


def _metrics(expert: type) -> str:
    """The titles of the metrics that the table of results shows."""
    metrics = metrics_of(expert)
    shown = [metric.title for metric in metrics if metric.headline or metric is metrics[0]]
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


def list_upstreams() -> None:
    """Print every installed upstream, and what is broken."""
    names = [Column(title, no_wrap=True) for title in ("upstream", "package")]
    table = Table(*names, "description", "state")
    broken = []
    for name, plugin in discover_upstreams().items():
        try:
            table.add_row(name, str(plugin), _upstream_title(name, plugin), "ok")
        except (Exception, SystemExit) as cause:
            table.add_row(name, str(plugin), "", "broken")
            broken.append(_why_broken(cause, "Upstream", name, plugin))
    OUTPUT.print(table)
    for paragraph in broken:
        OUTPUT.print(paragraph, markup=False, soft_wrap=True)
    OUTPUT.print("hf:PATH_OR_NAME: an encoder of Hugging Face, if transformers is installed.")
    zoo = zoo_names()
    if zoo:
        text = f"{_s3prl()}'s zoo: {', '.join(sorted(zoo))}. Which of them run: {ZOO_PAGE}."
        OUTPUT.print(text, markup=False, soft_wrap=True)
    else:
        OUTPUT.print("Install s3prl to use the encoders of its zoo.")


def _s3prl() -> str:
    """s3prl with its version, if it is installed rather than only on the path."""
    try:
        return f"s3prl {version('s3prl')}"
    except PackageNotFoundError:
        return "s3prl"


def _upstream_title(name: str, plugin: Plugin) -> str:
    """The first line of an upstream's docstring.

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
    return (inspect.getdoc(factory) or "").partition("\n")[0]
