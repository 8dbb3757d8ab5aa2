"""What each command of the command line does."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.progress import Progress

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint import resume as resuming
from s3prl_mtl.config import Config, build_config
from s3prl_mtl.config.layers import ARGUMENT_KEYS
from s3prl_mtl.data.mini_corpus import make_corpus
from s3prl_mtl.distributed.world import RankLost, World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import Remarks
from s3prl_mtl.mtl_branch.tasks import split_of
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.registry.task_names import find_in_run, split_specs, task_packages
from s3prl_mtl.tracking.console import MESSAGES, OUTPUT
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.tracking.tracker import Tracker
from s3prl_mtl.training.run_dir import working_in
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

LAUNCH = ".launch"
"""The file of a run that says which torchrun started it."""


def run(arguments: argparse.Namespace) -> None:
    """Train or evaluate, as `run_mtl.py` is told."""
    with World.join(arguments.backend, arguments.timeout) as world, Remarks() as remarks:
        if arguments.mode == "evaluate":
            _evaluate(arguments, world, remarks)
            return
        watch = world.watch
        with StopSignals(watch.ask_to_stop if watch is not None else None) as signals:
            try:
                _train(arguments, world, signals, remarks)
            except RankLost:
                # A rank that is asked to stop while it builds ends at once, and so do the others.
                if watch is None or watch.stop_asked is None or signals.was_deferred:
                    raise
                raise Stopped("Another rank was asked to stop before the training began.") from None


def _train(
    arguments: argparse.Namespace, world: World, signals: StopSignals, remarks: Remarks
) -> None:
    # The first rank decides for all: another machine may not see what it sees.
    chosen = world.run_on_all_ranks(
        lambda: _where_to_train(arguments, world, remarks) if world.is_lead else None
    )
    folder, past = world.broadcast(chosen) or _where_to_train(arguments, world, remarks)
    own = past is not None and past.resolve() == folder.resolve() and not arguments.dry_run
    saved, path = _load_past(past, world, set_aside=own) if past is not None else (None, None)
    config = world.run_on_all_ranks(lambda: _config_to_train(arguments, saved, remarks))
    if saved is not None:
        world.run_on_all_ranks(lambda: resuming.check(saved, config, path))
        config["downstream"] = list(saved["Tasks"])
    with working_in(folder, world, lock=True):
        remarks.say()
        if world.is_lead and not arguments.dry_run:
            (folder / LAUNCH).write_text(_launch(), encoding="utf-8")
        runner = MultiTaskRunner(config, folder, resume=saved, world=world)
        if arguments.dry_run:
            runner.try_out()
            if world.is_lead:
                OUTPUT.print("Everything is in order; nothing was trained.")
            return
        if path is not None:
            logger.info("Resuming %s at step %d.", path, runner.step)
            if runner.step >= config["runner"]["total_steps"]:
                logger.warning("All %d steps are done.", config["runner"]["total_steps"])
            if world.is_lead and path.parent.resolve() != folder.resolve():
                _bring_best_checkpoints(path.parent, folder)
        runner.train(signals)
    if world.is_lead:
        OUTPUT.print(results_table(folder))
        OUTPUT.print(f"The run is in {folder}", soft_wrap=True)


def _load_past(
    past: Path, world: World, set_aside: bool = True
) -> tuple[checkpoints.Checkpoint, Path]:
    """The checkpoint that a path names, the same on all ranks, and its file.

    Only the first rank chooses: it may have to pass over a damaged file.
    """
    chosen = world.run_on_all_ranks(
        lambda: checkpoints.load_newest(past, set_aside=set_aside) if world.is_lead else None
    )
    path = world.broadcast(chosen[1] if chosen is not None else past)
    saved = world.run_on_all_ranks(
        lambda: chosen[0] if chosen is not None else checkpoints.load(path)
    )
    return saved, path


def _where_to_train(
    arguments: argparse.Namespace, world: World, remarks: Remarks
) -> tuple[Path, Path | None]:
    """The folder of the run, and the folder or file that it goes on from.

    A run that torchrun has started again goes on, whether or not `-a` is given.
    """
    if arguments.past_exp:
        past = checkpoints.locate(Path(arguments.past_exp))
        elsewhere = arguments.expdir or arguments.expname
        folder = _run_folder(arguments, {}) if elsewhere else past.parent
        files = checkpoints.states_files(folder)
        if files and _is_restarted(folder, world):
            return folder, folder
        newest = (files or [past])[-1]
        if newest.resolve() != past.resolve():
            raise UserError(
                f"{folder} holds a newer state, {newest.name}, which would be lost.",
                where=f"-e {past}",
                fix=f"Go on from it with -e {folder}, or train in another folder with -p.",
            )
        return folder, Path(arguments.past_exp)
    # What `-d` means may depend on the run that is in the folder: a folder with a name comes first.
    is_named = arguments.expdir or arguments.expname
    folder = _run_folder(arguments, {} if is_named else _config(arguments, None, remarks))
    files = checkpoints.states_files(folder)
    if arguments.auto_resume or _is_restarted(folder, world):
        return folder, folder if files else None
    if files or (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder} already holds a run" + (f", up to {files[-1].name}." if files else "."),
            where="-n or -p",
            fix="Resume it with -a, or choose another name.",
        )
    return folder, None


def _is_restarted(folder: Path, world: World) -> bool:
    """Whether torchrun has started a run of this folder before and now starts it again."""
    mark = folder / LAUNCH
    same = world.restarted and mark.is_file() and mark.read_text(encoding="utf-8") == _launch()
    if same:
        logger.warning("torchrun has started the run again.")
    return same


def _launch() -> str:
    """What is the same for all attempts of one torchrun, and of no other."""
    return f"{socket.gethostname()} {os.getppid()} {os.environ.get('TORCHELASTIC_RUN_ID', '')}\n"


def _bring_best_checkpoints(run: Path, fork: Path) -> None:
    """The heads remember how good they were at best: what was best comes along."""
    for path in run.glob("*/*-best.ckpt"):
        target = fork / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _evaluate(arguments: argparse.Namespace, world: World, remarks: Remarks) -> None:
    if not arguments.past_exp:
        raise UserError("Nothing to evaluate is named.", where="-m evaluate", fix="-e RUN")
    past = Path(arguments.past_exp)
    saved, _ = _load_past(past, world, set_aside=False)
    if saved["Upstream"] and arguments.init_upstream_ckpt:
        raise UserError(
            "The checkpoint holds the encoder that its heads were trained with.",
            where=f"--init_upstream_ckpt {arguments.init_upstream_ckpt}",
            fix="Leave it out: to evaluate it is for what s3prl's branch saved with a frozen "
            "encoder.",
        )
    targets = world.run_on_all_ranks(lambda: _parse_splits(arguments.evaluate_split))
    if targets and not arguments.downstream:
        arguments.downstream = ",".join(dict.fromkeys(task for task, _ in targets))
    elif not arguments.downstream:
        arguments.downstream = ",".join(saved["Tasks"])
    config = world.run_on_all_ranks(lambda: _config(arguments, saved, remarks))
    names = task_packages(config, config["downstream"])
    targets = world.run_on_all_ranks(
        lambda: [(find_in_run(w, names) or w, split) for w, split in targets]
    )
    if "Origin" in saved:
        targets = [(task, split_of(task, split)) for task, split in targets]
    # However the run was trained: every rank takes its part of every split.
    config["distributed"] = {"parallel": "data", "placement": None}
    folder = Path(arguments.expdir) if arguments.expdir else _folder_of(past)
    world.run_on_all_ranks(lambda: resuming.check_weights_fit(saved, config))
    with working_in(folder, world, lock=False):
        remarks.say()
        runner = MultiTaskRunner(config, folder, resume=saved, world=world)
        with Tracker(folder) if world.is_lead else nullcontext() as tracker:
            runner.evaluate(targets or runner.splits("test_splits"), tracker)
    if world.is_lead:
        OUTPUT.print(results_table(folder, config=config))


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


def show_results(arguments: argparse.Namespace) -> None:
    """`results`: the table of a run."""
    OUTPUT.print(results_table(arguments.run, everything=arguments.all))


def _config(
    arguments: argparse.Namespace, saved: Mapping[str, Any] | None, remarks: Remarks
) -> Config:
    flags: dict[str, Any] = {
        key: getattr(arguments, flag)
        for flag, key in ARGUMENT_KEYS.items()
        if getattr(arguments, flag) is not None and getattr(arguments, flag) is not False
    }
    if arguments.upstream_trainable:
        flags["upstream.freeze"] = False
    if arguments.parallel and not arguments.placement:
        # Of the two the placement counts; one that an earlier run had is not asked for now.
        flags["distributed.placement"] = None
    if arguments.downstream:
        flags["downstream"] = split_specs(arguments.downstream)
    return build_config(
        files=arguments.config,
        flags=flags,
        overrides=arguments.override,
        base=saved["Config"] if saved is not None else None,
        remarks=remarks,
    )


def _config_to_train(
    arguments: argparse.Namespace, saved: Mapping[str, Any] | None, remarks: Remarks
) -> Config:
    with resuming.with_all_tasks():
        return _config(arguments, saved, remarks)


def _run_folder(arguments: argparse.Namespace, config: Mapping[str, Any]) -> Path:
    if arguments.expdir:
        return Path(arguments.expdir)
    if arguments.expname:
        return Path("result") / "downstream" / arguments.expname
    # Names of upstreams and tasks may be paths. A run is found again also when another package has
    # come to have a task of the same name, so that `-d` has to say whose it is.
    words = [config["upstream"]["name"], *(split_name(task)[1] for task in config["downstream"])]
    name = "-".join(Path(word.rstrip("/")).name for word in words)
    return Path("result") / "downstream" / name


def _folder_of(past: Path) -> Path:
    """The run that a path belongs to; a best checkpoint lies in a task's folder of its run."""
    folder = past if past.is_dir() else past.parent
    inside_a_run = not past.is_dir() and (folder.parent / "metrics.jsonl").is_file()
    return folder.parent if inside_a_run else folder


def _parse_splits(text: str | None) -> list[tuple[str, str]]:
    """The words for tasks of `-t`, and the splits."""
    targets = []
    for word in (text or "").split(","):
        if not word.strip():
            continue
        task, colon, split = word.strip().rpartition(":")
        if not colon or not task or not split:
            raise UserError(
                f"{word!r} is not of the form task:split.", where="-t", fix='"asr:test-clean"'
            )
        targets.append((task, split))
    return targets
