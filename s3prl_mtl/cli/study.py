"""`study`: plan and execute the paper's experiments, or show their state."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_mtl.cli.parser import add_encoder_settings, call
from s3prl_mtl.cli.report import show_report
from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.api.studies import PlannedStudy, StudyResults

logger = logging.getLogger(__name__)

RUN_FAILED = 1
"""The exit code if a run failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the study")

    what = parser.add_argument_group("what to run; needed once, then read from OUT/study.json")
    what.add_argument("-u", "--upstream", metavar="NAME", help="the encoder, such as hubert")
    what.add_argument("-k", "--upstream_ckpt", metavar="PATH", help="its checkpoint file")
    what.add_argument("-g", "--upstream_model_config", metavar="YAML", help="its config file")
    what.add_argument("-d", "--downstream", metavar="TASKS", help="asr,pr,...; all; all,-ks")
    what.add_argument(
        "--scenario",
        metavar="NAMES",
        help="scenarios a,b1,b2,c,d (default a,b1,b2,c); their dependencies are added",
    )
    what.add_argument(
        "--seeds", metavar="N", help="number of seeds, from 0; or a list: 3,5 (default 1)"
    )
    what.add_argument(
        "--alphas", metavar="A,...", help="weights of scenario d (default 0.25,0.5,0.75)"
    )
    what.add_argument(
        "--leave_out", metavar="TASKS", help="leave out only these tasks in turn, not all"
    )

    how = parser.add_argument_group("settings of the runs")
    how.add_argument(
        "--steps", type=int, metavar="N", help="steps of every run (default: by its config)"
    )
    how.add_argument(
        "-c",
        "--config",
        metavar="YAML",
        action="append",
        help="config of every run, a file or packaged settings",
    )
    how.add_argument(
        "--frozen_config",
        metavar="YAML",
        action="append",
        help="config of runs with a frozen encoder, before -c; {task} is the task, none: no "
        "file (default superb/{task}, if it exists)",
    )
    how.add_argument(
        "--joint_config",
        metavar="YAML",
        action="append",
        help="config of runs that train the encoder, before -c",
    )
    how.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of every run")
    how.add_argument(
        "--learning-rates",
        metavar="FILE",
        type=Path,
        help="optimizer.lr of runs with a frozen encoder, by task: {ks: 1e-3, ...}",
    )
    add_encoder_settings(how)
    how.add_argument(
        "--balancer",
        metavar="NAME[:OPTION=VALUE,...]",
        help="balancer of runs that train the encoder",
    )
    how.add_argument(
        "--log_conflicts",
        type=int,
        metavar="K",
        help="interval of comparing gradients, in runs that train the encoder",
    )

    where = parser.add_argument_group("this machine")
    where.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    where.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    where.add_argument("--device", help="auto, cpu, cuda")
    where.add_argument(
        "--num_workers", type=int, metavar="N", help="processes of each run that read batches"
    )
    where.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of parallel runs (default: as before; initially one per GPU, or one)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="show the state of the study")
    action.add_argument(
        "--print", action="store_true", help="print the commands of the runs that are not done"
    )
    action.add_argument(
        "--slurm",
        action="store_true",
        help="write job arrays with dependencies to OUT/slurm, for the runs that are not done",
    )
    action.add_argument("--run", metavar="RUN", help="execute only this run, such as a/seed0/ks")
    parser.add_argument(
        "--lr-sweep",
        action="store_true",
        help="find the learning rates of frozen runs on dev, up to --steps, and write "
        "OUT/learning_rates.yaml; with --status, show its state",
    )
    parser.add_argument(
        "--rates", metavar="R,...", help="learning rates of --lr-sweep (default 1e-5 to 1e-1)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Execute the study and write its report, or show its state or its commands.

    Raises:
        UserError: the folder has a study with other settings, or a setting is wrong.
        SystemExit: a run failed.
        Stopped: a signal came; the runs are saved.
    """
    from s3prl_mtl.api.studies import plan_study, study, sweep_learning_rates

    _refuse_without_effect(arguments)
    if arguments.status and (arguments.lr_sweep or _is_sweep(arguments.out)):
        _show_sweep(Path(os.path.abspath(arguments.out)))
        return
    if arguments.lr_sweep:
        call(sweep_learning_rates, arguments)
        path = Path(os.path.abspath(arguments.out)) / "learning_rates.yaml"
        OUTPUT.print(path.read_text(encoding="utf-8"), end="", markup=False, highlight=False)
        OUTPUT.print(f"Wrote {path}", soft_wrap=True, markup=False, highlight=False)
        return
    if arguments.status:
        _show(call(plan_study, arguments))
    elif arguments.print:
        print(call(plan_study, arguments).script())
    elif arguments.slurm:
        path = call(plan_study, arguments).write_slurm()
        OUTPUT.print(f"Submit with: bash {path}", soft_wrap=True, markup=False, highlight=False)
    else:
        results = call(study, arguments)
        show_results(results, None if arguments.run else call(plan_study, arguments))


def _refuse_without_effect(arguments: argparse.Namespace) -> None:
    for flag, given, other, wrong in (
        ("--rates", arguments.rates, "without --lr-sweep", not arguments.lr_sweep),
        ("--print", arguments.print, "with --lr-sweep", arguments.lr_sweep),
        ("--slurm", arguments.slurm, "with --lr-sweep", arguments.lr_sweep),
        ("--run", arguments.run, "with --lr-sweep", arguments.lr_sweep),
        ("--jobs", arguments.jobs, "with --run", arguments.run),
    ):
        if given and wrong:
            raise UserError(
                f"The flag has no effect {other}.",
                where=flag,
                fix="Leave out one of the two." if other.startswith("with ") else "Leave it out.",
                code="conflicting-options",
            )


def _is_sweep(out: Path) -> bool:
    """Whether the folder has a comparison of learning rates only."""
    from s3prl_mtl.study.settings import FILE, SWEEP_FILE

    return (out / SWEEP_FILE).is_file() and not (out / FILE).is_file()


def _show_sweep(out: Path) -> None:
    """Print the state of a comparison of learning rates, and the time left of its round.

    Raises:
        UserError: the folder has none.
    """
    from s3prl_mtl.study.learning_rates import runs_so_far
    from s3prl_mtl.study.record import survey
    from s3prl_mtl.study.settings import SWEEP_FILE, read_settings
    from s3prl_mtl.study.status import show_status

    settings = read_settings(out, SWEEP_FILE)
    if settings is None:
        raise UserError(
            f"{out} is not the folder of a comparison of learning rates.",
            where="--lr-sweep --status",
            fix="Give the folder that --lr-sweep was started with.",
            code="file-missing",
        )
    runs = runs_so_far(settings, out)
    show_status(runs, survey(runs, out), out, settings.jobs, settings.steps)


def show_results(results: StudyResults, plan: PlannedStudy | None) -> None:
    """Print the state of a study and its table.

    Args:
        results: of the runs that were executed.
        plan: of the study; None if only one run was executed.

    Raises:
        SystemExit: a run failed.
    """
    if plan is not None:
        _show(plan)
        if results.report is not None:
            show_report(results.report)
    if results.missing:
        count = len(results.missing)
        logger.error("%d runs are not done. The same command starts them again.", count)
        raise SystemExit(RUN_FAILED)


def _show(plan: PlannedStudy) -> None:
    from s3prl_mtl.study.status import show_status

    settings = plan.settings
    show_status(settings.plan.runs, plan.states(), plan.out, plan.jobs, settings.steps)
