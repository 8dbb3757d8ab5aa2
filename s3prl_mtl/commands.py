"""What each command of the command line does."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl.config import ARGUMENT_KEYS, Config, build_config, parse_tasks
from s3prl_mtl.console import OUTPUT, log_to_file
from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.errors import UserError
from s3prl_mtl.plugins import Plugin, discover_tasks, discover_upstreams, load_task
from s3prl_mtl.results import results_table
from s3prl_mtl.runner import MultiTaskRunner
from s3prl_mtl.tracking import Tracker

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Train or evaluate, as `run_mtl.py` is told."""
    _refuse_several_processes()
    if arguments.backend:
        logger.info("--backend %s: one process needs none.", arguments.backend)
    if arguments.mode == "evaluate":
        _evaluate(arguments)
    else:
        _train(arguments)


def _train(arguments: argparse.Namespace) -> None:
    past: Path | None
    if arguments.past_exp:
        past = checkpoints.locate(Path(arguments.past_exp))
        folder = past.parent
    else:
        folder = _run_folder(arguments, _config(arguments, None))
        files = checkpoints.states_files(folder)
        if files and not arguments.auto_resume:
            raise UserError(
                f"{folder} already holds a run, up to {files[-1].name}.",
                where="-n or -p",
                fix="Resume it with -a, or choose another name.",
            )
        past = files[-1] if files else None
    saved = checkpoints.load(past) if past else None
    config = _config(arguments, saved)
    if saved is not None:
        config["downstream"] = _tasks_to_resume(saved, config, past)
    folder.mkdir(parents=True, exist_ok=True)
    handler = log_to_file(folder / "log.txt")
    try:
        runner = MultiTaskRunner(config, folder, resume=saved)
        if arguments.dry_run:
            runner.try_out()
            OUTPUT.print("Everything is in order; nothing was trained.")
            return
        if saved is not None:
            logger.info("Resuming %s at step %d.", folder, runner.step)
        runner.train()
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    OUTPUT.print(results_table(folder))
    OUTPUT.print(f"The run is in {folder}", soft_wrap=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    if not arguments.past_exp:
        raise UserError("Nothing to evaluate is named.", where="-m evaluate", fix="-e RUN")
    past = Path(arguments.past_exp)
    saved = checkpoints.load(checkpoints.locate(past))
    targets = _parse_splits(arguments.evaluate_split)
    if targets and not arguments.downstream:
        arguments.downstream = ",".join(dict.fromkeys(task for task, _ in targets))
    elif not arguments.downstream:
        arguments.downstream = ",".join(saved["Tasks"])
    config = _config(arguments, saved)
    folder = Path(arguments.expdir) if arguments.expdir else _folder_of(past)
    folder.mkdir(parents=True, exist_ok=True)
    handler = log_to_file(folder / "log.txt")
    try:
        runner = MultiTaskRunner(config, folder, resume=saved)
        with Tracker(folder) as tracker:
            runner.evaluate(targets or runner.splits("test_splits"), tracker)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    OUTPUT.print(results_table(folder))


def make_mini_corpus(arguments: argparse.Namespace) -> None:
    """`make-corpus`: synthesise the mini corpus."""
    make_corpus(arguments.directory, size=arguments.size, seed=arguments.seed)
    OUTPUT.print(f"The corpus is in {arguments.directory}; pass it with --data.", soft_wrap=True)


def list_tasks(arguments: argparse.Namespace) -> None:
    """`tasks`: every installed task, the broken ones with what is wrong."""
    table = Table("task", "package", "metric", "corpus", "state")
    for name, plugin in discover_tasks().items():
        try:
            expert = load_task(name)
        except UserError as mistake:
            table.add_row(name, _package(plugin), "", "", str(mistake))
            continue
        metrics = getattr(expert, "metrics", ())
        corpus = getattr(getattr(expert, "corpus_type", None), "title", "")
        table.add_row(name, _package(plugin), metrics[0].title if metrics else "", corpus, "ok")
    OUTPUT.print(table)


def list_upstreams(arguments: argparse.Namespace) -> None:
    """`upstreams`: every installed upstream."""
    table = Table("upstream", "package")
    for name, plugin in discover_upstreams().items():
        table.add_row(name, _package(plugin))
    OUTPUT.print(table)
    OUTPUT.print("Any other name is looked up in s3prl's zoo, if s3prl is installed.")


def show_results(arguments: argparse.Namespace) -> None:
    """`results`: the table of a run."""
    OUTPUT.print(results_table(arguments.run, everything=arguments.all))


def _package(plugin: Plugin) -> str:
    return f"{plugin.package} {plugin.version}"


def _config(arguments: argparse.Namespace, saved: Mapping[str, Any] | None) -> Config:
    flags: dict[str, Any] = {
        key: getattr(arguments, flag)
        for flag, key in ARGUMENT_KEYS.items()
        if getattr(arguments, flag) not in (None, False)
    }
    if arguments.upstream_trainable:
        flags["upstream.freeze"] = False
    if arguments.downstream:
        flags["downstream"] = parse_tasks(arguments.downstream)
    return build_config(
        files=arguments.config,
        flags=flags,
        overrides=arguments.override,
        base=saved["Config"] if saved is not None else None,
    )


def _tasks_to_resume(saved: checkpoints.Checkpoint, config: Config, past: Path | None) -> list[str]:
    """The tasks of a run in their own order, by which the optimizer's state is matched."""
    if "Optimizer" not in saved:
        raise UserError(
            "A best checkpoint holds weights only, training cannot go on from it.",
            where=f"-e {past}",
            fix="Resume from a states-*.ckpt, or start a new run from these weights with -i.",
        )
    tasks = list(saved["Tasks"])
    if set(tasks) != set(config["downstream"]):
        raise UserError(
            f"The run trains {','.join(tasks)}, and cannot go on with "
            f"{','.join(config['downstream'])}.",
            where="-d",
            fix="Leave out -d, or start a new run from these weights with -i.",
        )
    return tasks


def _run_folder(arguments: argparse.Namespace, config: Config) -> Path:
    if arguments.expdir:
        return Path(arguments.expdir)
    name = arguments.expname or "-".join([config["upstream"]["name"], *config["downstream"]])
    return Path("result") / "downstream" / name


def _folder_of(past: Path) -> Path:
    """The run that a path belongs to; a best checkpoint lies in a task's folder of its run."""
    folder = past if past.is_dir() else past.parent
    inside_a_run = not past.is_dir() and (folder.parent / "metrics.jsonl").is_file()
    return folder.parent if inside_a_run else folder


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "Training on several processes is not there yet.",
            where="WORLD_SIZE, set by torchrun",
            fix="Start it without torchrun, on one process.",
        )


def _parse_splits(text: str | None) -> list[tuple[str, str]]:
    targets = []
    for word in (text or "").split(","):
        if not word.strip():
            continue
        task, colon, split = word.strip().rpartition(":")
        if not colon or not task or not split:
            raise UserError(
                f"{word!r} is not of the form task:split.", where="-t", fix='"asr:test-clean"'
            )
        targets.append((parse_tasks(task)[0], split))
    return targets
