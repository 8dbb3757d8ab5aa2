"""What each command of the command line does."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.progress import Progress
from rich.table import Table

from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl import resuming
from s3prl_mtl.config import ARGUMENT_KEYS, Config, build_config, parse_tasks
from s3prl_mtl.console import MESSAGES, OUTPUT, log_to_file
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
    folder, past = _where_to_train(arguments)
    saved = checkpoints.load(past) if past else None
    config = _config(arguments, saved)
    if saved is not None:
        resuming.check(saved, config, past)
        config["downstream"] = list(saved["Tasks"])
    with _working_in(folder, lock=True):
        runner = MultiTaskRunner(config, folder, resume=saved)
        if arguments.dry_run:
            runner.try_out()
            OUTPUT.print("Everything is in order; nothing was trained.")
            return
        if saved is not None:
            logger.info("Resuming %s at step %d.", past, runner.step)
            if runner.step >= config["runner"]["total_steps"]:
                logger.warning("All %d steps are done.", config["runner"]["total_steps"])
            if past is not None and past.parent.resolve() != folder.resolve():
                _bring_best_checkpoints(past.parent, folder)
        runner.train()
    OUTPUT.print(results_table(folder))
    OUTPUT.print(f"The run is in {folder}", soft_wrap=True)


def _where_to_train(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """The folder of the run, and the checkpoint that it goes on from."""
    if arguments.past_exp:
        past = checkpoints.locate(Path(arguments.past_exp))
        elsewhere = arguments.expdir or arguments.expname
        folder = _run_folder(arguments, {}) if elsewhere else past.parent
        newest = (checkpoints.states_files(folder) or [past])[-1]
        if newest.resolve() != past.resolve():
            raise UserError(
                f"{folder} holds a newer state, {newest.name}, which would be lost.",
                where=f"-e {past}",
                fix=f"Go on from it with -e {folder}, or train in another folder with -p.",
            )
        return folder, past
    folder = _run_folder(arguments, _config(arguments, None))
    files = checkpoints.states_files(folder)
    if arguments.auto_resume:
        return folder, files[-1] if files else None
    if files or (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder} already holds a run" + (f", up to {files[-1].name}." if files else "."),
            where="-n or -p",
            fix="Resume it with -a, or choose another name.",
        )
    return folder, None


def _bring_best_checkpoints(run: Path, fork: Path) -> None:
    """The heads remember how good they were at best: what was best comes along."""
    for path in run.glob("*/*-best.ckpt"):
        target = fork / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


@contextmanager
def _working_in(folder: Path, lock: bool) -> Iterator[None]:
    """Make a run's folder, log into it, and while training keep others out of it.

    Raises:
        UserError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guard = FileLock(folder / ".lock", timeout=0) if lock else nullcontext()
    try:
        with guard:
            handler = log_to_file(folder / "log.txt")
            try:
                yield
            finally:
                logging.getLogger().removeHandler(handler)
                handler.close()
    except Timeout:
        raise UserError(
            f"Another process trains in {folder}.", where="-n or -p", fix="Choose another name."
        ) from None


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
    resuming.check_weights_fit(saved, config)
    with _working_in(folder, lock=False):
        runner = MultiTaskRunner(config, folder, resume=saved)
        with Tracker(folder) as tracker:
            runner.evaluate(targets or runner.splits("test_splits"), tracker)
    OUTPUT.print(results_table(folder))


def make_mini_corpus(arguments: argparse.Namespace) -> None:
    """`make-corpus`: synthesise the mini corpus."""
    logger.info(
        "Making the %s corpus in %s (kept if it is there)", arguments.size, arguments.directory
    )
    with Progress(console=MESSAGES, disable=not MESSAGES.is_terminal) as progress:
        bar = progress.add_task("synthesising", total=None)
        make_corpus(
            arguments.directory,
            size=arguments.size,
            seed=arguments.seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    OUTPUT.print(f"The corpus is in {arguments.directory}; pass it with --data.", soft_wrap=True)


def list_tasks(arguments: argparse.Namespace) -> None:
    """`tasks`: every installed task, the broken ones with what is wrong."""
    table = Table("task", "package", "metric", "corpus", "state")
    broken = []
    for name, plugin in discover_tasks().items():
        try:
            expert = load_task(name)
        except UserError as mistake:
            table.add_row(name, _package(plugin), "", "", "broken")
            broken.append(str(mistake))
            continue
        metrics = getattr(expert, "metrics", ())
        corpus = getattr(getattr(expert, "corpus_type", None), "title", "")
        table.add_row(name, _package(plugin), metrics[0].title if metrics else "", corpus, "ok")
    OUTPUT.print(table)
    for paragraph in broken:
        OUTPUT.print(paragraph, markup=False, soft_wrap=True)


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
        if getattr(arguments, flag) is not None and getattr(arguments, flag) is not False
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


def _run_folder(arguments: argparse.Namespace, config: Mapping[str, Any]) -> Path:
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
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
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
