"""`run_mtl.py -m evaluate`: evaluate splits with the weights of a run."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from s3prl_mtl.checkpoint.compatibility import check_evaluate
from s3prl_mtl.cli.run_inputs import config_of, load_checkpoint, parse_splits
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.mtl_branch.tasks import split_of
from s3prl_mtl.registry.task_names import require_in_run, task_packages
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.tracking.tracker import Tracker
from s3prl_mtl.training.run_dir import working_in
from s3prl_mtl.training.runner import MultiTaskRunner


def evaluate(arguments: argparse.Namespace, world: World, deferred: DeferredLog) -> None:
    """Evaluate the splits of `-t`, or the test splits, and show the results.

    Raises:
        UserError: no run is named, a setting does not fit its weights, or a split cannot be
            scored; the others are evaluated and shown first.
    """
    if not arguments.past_exp:
        raise UserError(
            "No run to evaluate is named.",
            where="-m evaluate",
            fix="Name it with -e RUN.",
            code="missing-option",
        )
    past = Path(arguments.past_exp)
    saved, _ = load_checkpoint(past, world, set_aside=False)
    if saved.upstream and arguments.init_upstream_ckpt:
        raise UserError(
            "The checkpoint already contains the encoder that its heads were trained with.",
            where=f"--init_upstream_ckpt {arguments.init_upstream_ckpt}",
            fix="Leave out the flag: evaluation needs it only for checkpoints that s3prl's branch "
            "saved with a frozen encoder.",
            code="conflicting-options",
        )
    targets = world.run_on_all_ranks(lambda: parse_splits(arguments.evaluate_split))
    if not arguments.downstream:
        named = dict.fromkeys(task for task, _ in targets) or saved.tasks
        arguments.downstream = ",".join(named)
    config = world.run_on_all_ranks(lambda: config_of(arguments, saved, deferred))
    names = task_packages(config, config["downstream"])
    targets = world.run_on_all_ranks(
        lambda: [(require_in_run(task, names, "-t"), split) for task, split in targets]
    )
    if saved.origin is not None:
        targets = [(task, split_of(task, split)) for task, split in targets]
    # Every rank evaluates its part of every split, also if the run was trained task-parallel.
    config["distributed"] = {"parallel": "data", "placement": None}
    folder = Path(arguments.expdir) if arguments.expdir else _run_of(past)
    world.run_on_all_ranks(lambda: check_evaluate(saved, config))
    with working_in(folder, world, lock=False):
        deferred.flush()
        runner = MultiTaskRunner(config, folder, resume=saved, world=world)
        with Tracker(folder) if world.is_lead else nullcontext() as tracker:
            runner.evaluate(targets or runner.splits("test_splits"), tracker)
    if world.is_lead:
        OUTPUT.print(results_table(folder, config=config))
    runner.require_scores()


def _run_of(past: Path) -> Path:
    """The run folder of a path; best checkpoints are in a subfolder for each task."""
    folder = past if past.is_dir() else past.parent
    inside_a_run = not past.is_dir() and (folder.parent / "metrics.jsonl").is_file()
    return folder.parent if inside_a_run else folder
