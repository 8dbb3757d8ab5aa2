"""Train, or resume a run. The flags of the command are in `s3prl_mtl/cli/run_flags.py`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_mtl.api.calls import (
    Override,
    PathLike,
    Words,
    callable_from_python,
    comma_separated,
    listed,
)
from s3prl_mtl.api.run_inputs import (
    Manifest,
    config_of,
    default_folder,
    forget_listings_if_asked,
    load_checkpoint,
    named_folder,
    refuse_pairs,
)
from s3prl_mtl.api.run_results import RunResults, UnscoredSplits
from s3prl_mtl.api.versions import versions
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_resume, requiring_all_tasks
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import Config
from s3prl_mtl.distributed import DEFAULT_TIMEOUT_SECONDS
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import RankLost, UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.tracking.console import showing_progress
from s3prl_mtl.training.reporting import unscored_error
from s3prl_mtl.training.run_dir import (
    mark_finished,
    read_finished,
    unmark_finished,
    working_in,
)
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
VERSIONS = "versions.json"
"""File in the run folder with the versions of the packages at its last start."""
LAUNCH = ".launch"
"""File in the run folder that identifies the torchrun that started the run."""


@callable_from_python
def train(
    *,
    upstream: str | None = None,
    upstream_ckpt: PathLike | None = None,
    upstream_model_config: PathLike | None = None,
    downstream: Words | None = None,
    data: PathLike | None = None,
    manifest: Manifest | None = None,
    upstream_feature_selection: str | None = None,
    trust_remote_code: bool = False,
    freeze_upstream: bool | None = None,
    unfreeze_after: int | None = None,
    config: PathLike | Sequence[PathLike] = (),
    override: Override | None = None,
    steps: int | None = None,
    precision: str | None = None,
    checkpoint_activations: bool = False,
    max_pass_seconds: float | None = None,
    num_workers: int | None = None,
    sampling: str | None = None,
    fraction: str | Mapping[str, float] | None = None,
    noise: str | None = None,
    reverb: PathLike | None = None,
    speed: str | Sequence[float] | None = None,
    balancer: str | None = None,
    log_conflicts: int | None = None,
    track: Words | None = None,
    seed: int | None = None,
    device: str | None = None,
    cache_dir: PathLike | None = None,
    rescan: bool = False,
    parallel: str | None = None,
    placement: str | None = None,
    backend: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    expname: str | None = None,
    expdir: PathLike | None = None,
    past_exp: PathLike | None = None,
    auto_resume: bool = False,
    init_ckpt: PathLike | Sequence[PathLike] | None = None,
    init_heads_only: bool = False,
    init_upstream_ckpt: PathLike | None = None,
    dry_run: bool = False,
    progress: bool | None = False,
) -> RunResults:
    """Train one encoder on several tasks, or resume a run: the command `train`.

    Seeds torch, numpy and Python. Under torchrun every process calls it with the same arguments.
    An interrupt (Ctrl-C, "interrupt the kernel") saves the run after the current step.

    Args:
        upstream: the encoder, such as `hubert`.
        upstream_ckpt: its checkpoint file.
        upstream_model_config: its config file.
        downstream: the tasks: `["asr", "ks"]` or `"all,-ks"`.
        data: folder of the corpora; by default `$SUPERB_DATA`.
        manifest: tables of own data: `{"asr": {"train": "a.csv", "dev": ..., "test": ...}}`.
        upstream_feature_selection: `hidden_states`, `layer_results` or `last_hidden_state`.
        trust_remote_code: execute modelling code of the repository of the encoder.
        freeze_upstream: True trains the heads only, False the encoder too; None as the config says.
        unfreeze_after: train the heads only for so many steps.
        config: YAML files or packaged settings (`demo`, `superb/ks`), the later over the earlier.
        override: further settings by dotted key: `{"optimizer.lr": 1e-4}`; or the text of `-o`.
        steps: total steps.
        precision: `fp32`, `tf32` or `bf16`.
        checkpoint_activations: keep less in memory, compute more.
        max_pass_seconds: seconds of audio in one pass of a step.
        num_workers: processes of each rank that read training batches.
        sampling: the tasks of a step: `all`, `proportional`, `temperature:2`, ...
        fraction: train on a share of the utterances of a task: `{"asr": 0.1}`.
        noise: folder of noise, with a range of ratios in dB: `"musan/noise:snr=5-20"`.
        reverb: folder of room impulse responses.
        speed: factors of the speed: `[0.9, 1.0, 1.1]`.
        balancer: how tasks are combined: `"pcgrad"`, `"fixed:asr=1,ks=0.3"`.
        log_conflicts: compare the gradients of the tasks every so many steps.
        track: `["tensorboard", "csv", "wandb", "mlflow"]`, or `"none"`.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        cache_dir: folder of downloads and scanned corpora.
        rescan: list the corpora even if their folders have not changed.
        parallel: with torchrun, `data` or `task`.
        placement: with torchrun, the tasks of each rank: `"0:asr;1:pr,ks"`.
        backend: `gloo` or `nccl`.
        timeout: seconds that a rank waits for the others.
        expname: the run is `result/downstream/NAME`.
        expdir: the folder of the run.
        past_exp: resume this run, a folder or a `.ckpt` file.
        auto_resume: resume if the folder has a checkpoint.
        init_ckpt: weights to start from: runs, checkpoints, or a folder of them.
        init_heads_only: take only the heads from `init_ckpt`.
        init_upstream_ckpt: encoder weights to start from.
        dry_run: check everything with one batch of each split; no training.
        progress: show a progress bar; None on a terminal only.

    Returns:
        folder, last step and results of the run.

    Raises:
        UserError: a setting, a corpus or a checkpoint is wrong, or the folder has another run.
        UnscoredSplits: a split could not be scored at the end; the run is saved.
        Stopped: a signal came; the run is saved. A `KeyboardInterrupt`.
    """
    arguments = Namespace(mode="train", **locals())
    arguments.config, arguments.init_ckpt = listed(config), listed(init_ckpt) or None
    arguments.track = comma_separated(track)
    refuse_pairs(arguments)
    with (
        showing_progress(progress),
        World.join(backend, timeout) as world,
        DeferredLog() as deferred,
    ):
        watch = world.watch

        def on_request(name: str) -> None:
            if watch is not None:
                watch.ask_to_stop(name)
            if name == "SIGINT" and world.is_lead:
                # Not logged: a signal handler may interrupt a write to the log.
                os.write(2, b"\nThe run is saved after this step. Ctrl-C again ends it at once.\n")

        with StopSignals(on_request) as signals:
            try:
                return _train(arguments, world, signals, deferred)
            except RankLost:
                # A rank that is asked to stop during setup exits at once, and so do the others.
                if watch is None or watch.stop_asked is None or signals.was_deferred:
                    raise
                raise Stopped("Another rank was asked to stop before the training began.") from None


def _train(
    arguments: Namespace, world: World, signals: StopSignals, deferred: DeferredLog
) -> RunResults:
    """Train the run from its start or its newest checkpoint.

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
        step = saved.step if saved is not None else 0
        return RunResults(folder, step, {}, is_lead=world.is_lead)
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
        found = runner.train(signals)
        again = finished is not None and finished.step == before == runner.step
        if world.is_lead and not runner.unscored and not again:
            mark_finished(folder, runner.step)
    results = RunResults(folder, runner.step, found, is_lead=world.is_lead)
    if runner.unscored:
        raise UnscoredSplits(unscored_error(runner.unscored), results)
    return results


def _dry_run(config: Config, saved: RunCheckpoint | None, world: World) -> None:
    """Build everything and run one batch of every split, in a temporary folder."""
    tasks = ", ".join(config["downstream"])
    logger.info("Dry run: building %s and the heads of %s.", config["upstream"]["name"], tasks)
    with tempfile.TemporaryDirectory() as folder:
        MultiTaskRunner(config, folder, resume=saved, world=world).try_out()


def _config(arguments: Namespace, saved: RunCheckpoint | None, deferred: DeferredLog) -> Config:
    with requiring_all_tasks():
        return config_of(arguments, saved, deferred)


def _choose_folder(
    arguments: Namespace, world: World, deferred: DeferredLog
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
