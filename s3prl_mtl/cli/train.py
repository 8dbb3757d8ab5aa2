"""`train`: train, or resume a run. Its flags are in `run_flags.py`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_resume, requiring_all_tasks
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.cli.run_inputs import (
    config_of,
    default_folder,
    forget_listings_if_asked,
    load_checkpoint,
    named_folder,
)
from s3prl_mtl.cli.versions import versions
from s3prl_mtl.config import Config
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.run_dir import (
    mark_finished,
    read_finished,
    unmark_finished,
    working_in,
)
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.signals import StopSignals

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
VERSIONS = "versions.json"
"""File in the run folder with the versions of the packages at its last start."""
LAUNCH = ".launch"
"""File in the run folder that identifies the torchrun that started the run."""


def train(
    arguments: argparse.Namespace, world: World, signals: StopSignals, deferred: DeferredLog
) -> None:
    """Train the run that the flags describe, from its start or its newest checkpoint.

    Raises:
        UserError: the folder holds another run, its checkpoint does not fit the settings, or a
            split could not be scored at the end; the run is saved then.
    """
    # The first rank decides for all ranks: another machine may see other files.
    chosen = world.run_on_all_ranks(
        lambda: _choose_folder(arguments, world, deferred) if world.is_lead else None
    )
    folder, past = world.broadcast(chosen) or _choose_folder(arguments, world, deferred)
    own = past is not None and past.resolve() == folder.resolve() and not arguments.dry_run
    saved, path = load_checkpoint(past, world, set_aside=own) if past is not None else (None, None)
    if saved is None and arguments.auto_resume and (folder / CONFIG).is_file():
        # A run that ended before its first checkpoint.
        arguments.config.insert(0, str(folder / CONFIG))
    if saved is None and arguments.auto_resume and not (arguments.config or arguments.downstream):
        raise UserError(
            f"{folder} has no run to resume, and no task is named to start one.",
            where="-a",
            fix="Give the folder of a run (-p or -n), or name tasks, such as -d ks,er.",
            code="missing-option",
        )
    config = world.run_on_all_ranks(lambda: _config(arguments, saved, deferred))
    forget_listings_if_asked(arguments, config, world)
    if saved is not None:
        world.run_on_all_ranks(lambda: check_resume(saved, config, path))
        config["downstream"] = list(saved.tasks)
    if arguments.dry_run:
        deferred.flush()
        _dry_run(config, saved, world)
        return
    with working_in(folder, world, lock=True):
        deferred.flush()
        if world.is_lead:
            (folder / LAUNCH).write_text(_launch(), encoding="utf-8")
            replace_text(folder / VERSIONS, json.dumps(versions(), indent=2) + "\n")
        runner = MultiTaskRunner(config, folder, resume=saved, world=world)
        if path is not None:
            logger.info("Resuming %s at step %d.", path, runner.step)
            total_steps = runner.config.runner.total_steps
            if runner.step >= total_steps:
                logger.warning("All %d steps are done.", total_steps)
            if world.is_lead and path.parent.resolve() != folder.resolve():
                _copy_best_checkpoints(path.parent, folder)
        # A finished run that is only evaluated again keeps its mark.
        finished = read_finished(folder)
        if finished is not None and finished.step != runner.step and world.is_lead:
            unmark_finished(folder)
        before = runner.step
        runner.train(signals)
        again = finished is not None and finished.step == before == runner.step
        if world.is_lead and not runner.unscored and not again:
            mark_finished(folder, runner.step)
    if world.is_lead:
        OUTPUT.print(results_table(folder))
        OUTPUT.print(f"The run is in {folder}", soft_wrap=True)
    runner.require_scores()


def _dry_run(config: Config, saved: RunCheckpoint | None, world: World) -> None:
    """Build everything and run one batch of every split, in a temporary folder."""
    tasks = ", ".join(config["downstream"])
    logger.info("Dry run: building %s and the heads of %s.", config["upstream"]["name"], tasks)
    with tempfile.TemporaryDirectory() as folder:
        MultiTaskRunner(config, folder, resume=saved, world=world).try_out()
    if world.is_lead:
        OUTPUT.print("All checks passed; nothing was trained.")


def _config(
    arguments: argparse.Namespace, saved: RunCheckpoint | None, deferred: DeferredLog
) -> Config:
    with requiring_all_tasks():
        return config_of(arguments, saved, deferred)


def _choose_folder(
    arguments: argparse.Namespace, world: World, deferred: DeferredLog
) -> tuple[Path, Path | None]:
    """The folder of the run, and the folder or file to resume from.

    A run that torchrun restarts is resumed with and without `-a`.

    Raises:
        UserError: the folder holds a run, or a newer checkpoint, that would be overwritten.
    """
    if arguments.past_exp:
        past = checkpoints.locate(Path(arguments.past_exp))
        folder = named_folder(arguments) or past.parent
        files = checkpoints.states_files(folder)
        if files and _is_restarted(folder, world):
            return folder, folder
        newest = (files or [past])[-1]
        if newest.resolve() != past.resolve():
            raise UserError(
                f"{folder} contains a newer checkpoint, {newest.name}, which would be lost.",
                where=f"-e {past}",
                fix=f"Resume from it with -e {folder}, or train in another folder with -p.",
                code="resume-conflict",
            )
        return folder, Path(arguments.past_exp)
    # Check a named folder before building the config, because `-d` may depend on the run in it.
    folder = named_folder(arguments) or default_folder(config_of(arguments, None, deferred))
    files = checkpoints.states_files(folder)
    if arguments.auto_resume or _is_restarted(folder, world):
        return folder, folder if files else None
    if files or (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder} already contains a run" + (f", up to {files[-1].name}." if files else "."),
            where="-n or -p",
            fix="Resume it with -a, or choose another name.",
            code="file-exists",
        )
    return folder, None


def _is_restarted(folder: Path, world: World) -> bool:
    """Whether this process is a restart, by torchrun, of the run in this folder."""
    mark = folder / LAUNCH
    restarted = world.restarted and mark.is_file() and mark.read_text(encoding="utf-8") == _launch()
    if restarted:
        logger.warning("torchrun has restarted the run.")
    return restarted


def _launch() -> str:
    """Identify a torchrun: equal for all of its attempts, and different for others."""
    return f"{socket.gethostname()} {os.getppid()} {os.environ.get('TORCHELASTIC_RUN_ID', '')}\n"


def _copy_best_checkpoints(run: Path, fork: Path) -> None:
    """Copy the best checkpoints: the heads of the fork keep the best scores of the run."""
    for path in run.glob("*/*-best.ckpt"):
        target = fork / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
