"""Evaluate splits with the weights of a run. The flags are in `s3prl_mtl/cli/run_flags.py`."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from s3prl_mtl.api.calls import (
    Override,
    PathLike,
    Words,
    callable_from_python,
    comma_separated,
    listed,
    split_tasks,
)
from s3prl_mtl.api.run_inputs import (
    Manifest,
    config_of,
    forget_listings_if_asked,
    load_checkpoint,
    parse_splits,
)
from s3prl_mtl.api.run_results import RunResults, UnscoredSplits
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.best import best_files, best_of
from s3prl_mtl.checkpoint.compatibility import check_evaluate
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import Config
from s3prl_mtl.config.overrides import ARGUMENT_KEYS
from s3prl_mtl.distributed import DEFAULT_TIMEOUT_SECONDS
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.mtl_branch.tasks import split_of
from s3prl_mtl.registry.plugins import TASKS, find_plugin
from s3prl_mtl.registry.task_names import find_in_run, require_in_run, task_packages
from s3prl_mtl.s3prl_compat.task_spec import is_s3prl_task
from s3prl_mtl.tracking.console import showing_progress
from s3prl_mtl.tracking.recorder import Recorder
from s3prl_mtl.tracking.trackers import TrackedRun, start_trackers
from s3prl_mtl.training.reporting import unscored_error
from s3prl_mtl.training.run_dir import working_in
from s3prl_mtl.training.runner import evaluate_checkpoint

logger = logging.getLogger(__name__)


TRAINING_ONLY = {*ARGUMENT_KEYS, "fraction"}
"""Arguments that settings are read from; those that an evaluation does not have are None."""


@callable_from_python
def evaluate(
    past_exp: PathLike | None = None,
    *,
    evaluate_split: str | Sequence[str | tuple[str, str]] | None = None,
    best: bool = False,
    upstream: str | None = None,
    upstream_ckpt: PathLike | None = None,
    upstream_model_config: PathLike | None = None,
    downstream: Words | None = None,
    data: PathLike | None = None,
    manifest: Manifest | None = None,
    upstream_feature_selection: str | None = None,
    trust_remote_code: bool = False,
    config: PathLike | Sequence[PathLike] = (),
    override: Override | None = None,
    precision: str | None = None,
    noise: str | None = None,
    reverb: PathLike | None = None,
    speed: str | Sequence[float] | None = None,
    track: Words | None = None,
    seed: int | None = None,
    device: str | None = None,
    cache_dir: PathLike | None = None,
    rescan: bool = False,
    backend: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    expdir: PathLike | None = None,
    init_upstream_ckpt: PathLike | None = None,
    progress: bool | None = False,
) -> RunResults:
    """Evaluate splits with the weights of a run: the command `evaluate`.

    Args:
        past_exp: the folder of the run, or a `.ckpt` file.
        evaluate_split: pairs of task and split, or `"asr:test-clean,ks:test"` as a text or a list;
            by default the test splits.
        best: evaluate each task with its own best checkpoint.
        downstream: the tasks; by default those of the run.
        noise: add noise; as `reverb` and `speed`, with an `expdir`.
        expdir: folder of the results; by default that of the run.

    The other arguments replace settings of the run and are those of `train`.

    Returns:
        the results of the evaluated splits.

    Raises:
        UserError: no run is named, or a setting does not fit its weights.
        UnscoredSplits: a split could not be scored; the others are evaluated.
    """
    arguments = Namespace(**{**dict.fromkeys(TRAINING_ONLY), **locals()}, mode="evaluate")
    arguments.config, arguments.track = listed(config), comma_separated(track)
    if not past_exp:
        raise UserError(
            "No run to evaluate is named.",
            where="-m evaluate",
            fix="Name it with -e RUN.",
            code="missing-option",
        )
    if (noise or reverb or speed) and not expdir:
        raise UserError(
            "The results of changed waveforms need a folder of their own.",
            where="--noise, --reverb, --speed",
            fix="Name it with -p DIR; `s3prl-mtl results RUN DIR` compares both.",
            code="missing-option",
        )
    with (
        showing_progress(progress),
        World.join(backend, timeout) as world,
        DeferredLog() as deferred,
    ):
        return _evaluate(arguments, Path(past_exp), world, deferred)


def _evaluate(arguments: Namespace, past: Path, world: World, deferred: DeferredLog) -> RunResults:
    """Evaluate the splits; with `best`, each task with its own best checkpoint."""
    folder = Path(arguments.expdir) if arguments.expdir else _run_of(past)
    targets = world.run_on_all_ranks(lambda: parse_splits(arguments.evaluate_split))
    evaluated: list[tuple[str, str]] = []
    unscored: dict[tuple[str, str], UserError] = {}
    config: Config = {}
    files: dict[str | None, Path] = {comma_separated(arguments.downstream): past}
    results: dict[str, dict[str, dict[str, float]]] = {}
    steps = set()
    if arguments.best:
        files = world.run_on_all_ranks(lambda: _best_checkpoints(past, arguments, targets))
    else:
        world.run_on_all_ranks(lambda: checkpoints.locate(past))
    with working_in(folder, world, lock=False), ExitStack() as stack:
        recorder = None
        for task, file in files.items():
            saved, path = load_checkpoint(file, world, set_aside=False)
            one = Namespace(**{**vars(arguments), "downstream": task})
            own = targets
            if arguments.best and task:
                packages = task_packages(saved.config, [task])
                own = [target for target in targets if find_in_run(target[0], packages)]
            blocks, own = _prepare(one, saved, own, world, deferred)
            if recorder is None and world.is_lead:
                trackers = start_trackers(blocks["runner"]["track"], TrackedRun(folder))
                recorder = stack.enter_context(Recorder(folder, trackers=trackers))
            splits, failed = evaluate_checkpoint(saved, path, blocks, folder, world, recorder, own)
            config, evaluated = {**config, **blocks}, evaluated + splits
            unscored |= failed
            steps.add(saved.step)
        if recorder is not None:
            results = recorder.results
    done = {
        task: {split: scores for split, scores in by_split.items() if (task, split) in evaluated}
        for task, by_split in results.items()
        if any(task == name for name, _ in evaluated)
    }
    step = steps.pop() if len(steps) == 1 else None
    found = RunResults(folder, step, done, evaluated, config, world.is_lead)
    if unscored:
        raise UnscoredSplits(unscored_error(unscored), found)
    return found


def _prepare(
    arguments: Namespace,
    saved: RunCheckpoint,
    targets: Sequence[tuple[str, str]],
    world: World,
    deferred: DeferredLog,
) -> tuple[Config, list[tuple[str, str]]]:
    """The config to evaluate a checkpoint with, and the splits by the names of its tasks.

    Args:
        arguments: of the command line.
        saved: the checkpoint.
        targets: of `-t`.
        world: the ranks.
        deferred: buffers warnings about the config.

    Raises:
        UserError: a setting does not fit the weights.
    """
    if saved.upstream and arguments.init_upstream_ckpt:
        raise UserError(
            "The checkpoint already contains the encoder that its heads were trained with.",
            where=f"--init_upstream_ckpt {arguments.init_upstream_ckpt}",
            fix="Leave out the flag: evaluation needs it only for checkpoints that s3prl's branch "
            "saved with a frozen encoder.",
            code="conflicting-options",
        )
    if not arguments.downstream:
        held = task_packages(saved.config, saved.tasks)
        for task, split in targets:
            if not find_in_run(task, held) and not is_s3prl_task(task):
                find_plugin(TASKS, task, where=f"-t {task}:{split}")
        named = dict.fromkeys(task for task, _ in targets) or saved.tasks
        arguments.downstream = ",".join(named)
    config = world.run_on_all_ranks(lambda: config_of(arguments, saved, deferred))
    names = task_packages(config, config["downstream"])
    targets = world.run_on_all_ranks(
        lambda: [(require_in_run(task, names, "-t"), split) for task, split in targets]
    )
    if saved.origin is not None:
        targets = [(task, split_of(task, split)) for task, split in targets]
    world.run_on_all_ranks(lambda: check_evaluate(saved, config))
    forget_listings_if_asked(arguments, config, world)
    deferred.flush()
    return config, list(targets)


def _best_checkpoints(
    run: Path, arguments: Namespace, targets: Sequence[tuple[str, str]]
) -> dict[str | None, Path]:
    """The best checkpoint of each task of a run, or of those of `-d` or `-t`.

    Raises:
        UserError: a task has none, or several of which none is that of its first dev split.
    """
    if not run.exists():
        checkpoints.locate(run)
    found = best_files(run)
    if not found:
        raise UserError(
            f"{run} has no best checkpoints, such as ks/dev-best.ckpt.",
            where=f"-e {run}",
            fix="Give the folder of a run that evaluated its dev splits, or leave out --best.",
            code="checkpoint-missing",
        )
    specs = split_tasks(arguments.downstream) if arguments.downstream else []
    wanted = specs or list(dict.fromkeys(task for task, _ in targets))
    config = read_yaml(run / "config.yaml", "-e") if (run / "config.yaml").is_file() else {}
    packages = task_packages(config, [*dict.fromkeys([*config.get("downstream", ()), *found])])
    flag = "-d" if specs else "-t"
    named = [require_in_run(spec, packages, flag) for spec in wanted]
    for task in named:
        if task not in found:
            raise UserError(
                f"The task {task} has no best checkpoint.",
                where=f"{flag} {task}, --best",
                fix="Leave out --best to evaluate the last weights.",
                code="checkpoint-missing",
            )
    tasks = named or [
        *(task for task in config.get("downstream", ()) if task in found),
        *(task for task in found if task not in config.get("downstream", ())),
    ]
    for task in config.get("downstream", ()):
        if task not in found and not wanted:
            logger.warning("%s has no best checkpoint and is not evaluated.", task)
    return {task: best_of(task, found[task], config) for task in tasks}


def _run_of(past: Path) -> Path:
    """The run folder of a path; best checkpoints are in a subfolder for each task."""
    folder = past if past.is_dir() else past.parent
    inside_a_run = not past.is_dir() and (folder.parent / "metrics.jsonl").is_file()
    return folder.parent if inside_a_run else folder
