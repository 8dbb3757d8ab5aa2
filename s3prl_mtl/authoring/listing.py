"""What is installed: tasks and upstreams, whose they are, and what is wrong with them."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.console import OUTPUT
from s3prl_mtl.errors import UserError
from s3prl_mtl.expert import Metric
from s3prl_mtl.plugins import (
    Plugin,
    discover_tasks,
    discover_upstreams,
    load_task,
    task_defaults,
)
from s3prl_mtl.s3prl_tasks.folders import installed_folders
from s3prl_mtl.upstreams.zoo import zoo_names


def list_tasks(arguments: argparse.Namespace) -> None:
    """`tasks`: every installed task, whether its data is there, and what is broken."""
    # Names are to be typed and searched for: other columns give way first.
    names = [Column(title, no_wrap=True) for title in ("task", "package")]
    table = Table(*names, "metric", "corpus", "data", "state")
    paragraphs: dict[str, str] = {}
    data = arguments.data or os.environ.get("SUPERB_DATA")
    tasks = discover_tasks()
    for name, plugin in tasks.items():
        try:
            expert = load_task(name)
            task_defaults(name)
        except UserError as mistake:
            table.add_row(name, _package(plugin), "", "", "", "broken")
            paragraphs[name] = str(mistake)
            continue
        present, lines = _data_state(name, expert, data)
        if lines:
            paragraphs[name] = "\n  ".join(lines)
        corpus = str(getattr(getattr(expert, "corpus_type", None), "title", ""))
        state = _state(name, expert, tasks)
        table.add_row(name, _package(plugin), _metrics(expert), corpus, present, state)
    OUTPUT.print(table)
    for name, paragraph in paragraphs.items():
        OUTPUT.print(f"{name}: {paragraph.removeprefix(f'{name}: ')}", markup=False, soft_wrap=True)
    experts = installed_folders()
    if experts:
        listed = ", ".join(f"s3prl:{folder}" for folder in sorted(experts))
        OUTPUT.print(f"s3prl's own experts: {listed}", markup=False, soft_wrap=True)
    if not data:
        OUTPUT.print("Whether the data is there is shown with --data DIR (or $SUPERB_DATA).")


def _metrics(expert: Any) -> str:
    """The titles of what the task shows in the table of results."""
    metrics: Sequence[Metric] = getattr(expert, "metrics", ())
    shown = [metric.title for metric in metrics if metric.headline or metric is metrics[0]]
    return ", ".join(shown)


def _state(name: str, expert: Any, tasks: Mapping[str, Plugin]) -> str:
    stated = getattr(expert, "name", None)
    if stated != name and stated in tasks:
        return f"another word for {stated}"
    if ":" in name and name not in (stated, f"s3prl:{stated}"):
        return "ok, by this name: two packages have it"
    return "ok"


def _data_state(name: str, expert: Any, data: str | None) -> tuple[str, list[str]]:
    """Whether the corpus of a task is there, and what is wrong with it."""
    check = getattr(expert, "problems", None)
    if check is None:
        return "it does not say", []
    flags: dict[str, Any] = {"downstream": [name]}
    if data:
        flags["data"] = data
    try:
        config = resolve(build_config(flags=flags))
        (block,) = (config[task] for task in config["downstream"])
        problems = check(block["downstream_expert"])
    except UserError as mistake:
        return ("?", []) if not data else ("?", [str(mistake)])
    except Exception as error:
        return "?", [f"its check of the corpus failed: {type(error).__name__}: {error}."]
    return ("missing", problems) if problems else ("there", [])


def list_upstreams(arguments: argparse.Namespace) -> None:
    """`upstreams`: every installed upstream, and what is broken."""
    names = [Column(title, no_wrap=True) for title in ("upstream", "package")]
    table = Table(*names, "what it is", "state")
    broken = []
    for name, plugin in discover_upstreams().items():
        try:
            factory = plugin.load()
        except UserError as mistake:
            table.add_row(name, _package(plugin), "", "broken")
            broken.append(str(mistake))
            continue
        what = (inspect.getdoc(factory) or "").partition("\n")[0]
        state = "ok" if callable(factory) else "broken"
        if not callable(factory):
            broken.append(
                f"Upstream {name!r} of package {_package(plugin)} is no function but a "
                f"{type(factory).__name__}. Where: entry point {plugin.entry_point.value}."
            )
        table.add_row(name, _package(plugin), what, state)
    OUTPUT.print(table)
    for paragraph in broken:
        OUTPUT.print(paragraph, markup=False, soft_wrap=True)
    OUTPUT.print("hf:PATH_OR_NAME is an encoder of Hugging Face, if transformers is installed.")
    zoo = zoo_names()
    if zoo:
        OUTPUT.print(f"s3prl's zoo: {', '.join(sorted(zoo))}", markup=False, soft_wrap=True)
    else:
        OUTPUT.print("The names of s3prl's zoo are there once s3prl is installed.")


def _package(plugin: Plugin) -> str:
    return f"{plugin.package} {plugin.version}"
