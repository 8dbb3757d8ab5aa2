"""`study`: plan and execute the paper's experiments, or show their state."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.cli.report import write_report
from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.training.signals import StopSignals

if TYPE_CHECKING:
    from s3prl_mtl.study.plan import StudyRun
    from s3prl_mtl.study.record import RunState
    from s3prl_mtl.study.settings import StudySettings

logger = logging.getLogger(__name__)

RUN_FAILED = 1
"""The exit code if a run failed."""

DEFAULT_ALPHAS = (0.25, 0.5, 0.75)


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
        help="of a,b1,b2,c,d (default a,b1,b2,c); those that they start from are added",
    )
    what.add_argument(
        "--seeds", metavar="N", help="number of seeds, from 0; or a list: 3,5 (default 1)"
    )
    what.add_argument("--alphas", metavar="A,...", help="of scenario d (default 0.25,0.5,0.75)")
    what.add_argument(
        "--leave_out", metavar="TASKS", help="leave out only these tasks in turn, not all"
    )

    how = parser.add_argument_group("settings of the runs")
    how.add_argument("--steps", type=int, metavar="N", help="of every run (default: by its config)")
    how.add_argument(
        "-c",
        "--config",
        metavar="YAML",
        action="append",
        help="of every run, a file or packaged settings",
    )
    how.add_argument(
        "--frozen_config",
        metavar="YAML",
        action="append",
        help="of runs with a frozen encoder, before -c; {task} is its task, none is no file "
        "(default superb/{task}, where there is one)",
    )
    how.add_argument(
        "--joint_config",
        metavar="YAML",
        action="append",
        help="of runs that train the encoder, before -c",
    )
    how.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="of every run")
    how.add_argument(
        "--learning-rates",
        metavar="FILE",
        type=Path,
        help="optimizer.lr of runs with a frozen encoder, by task: {ks: 1e-3, ...}",
    )
    how.add_argument(
        "-s",
        "--upstream_feature_selection",
        choices=["hidden_states", "layer_results", "last_hidden_state"],
        help="layers in the weighted sum of features",
    )
    how.add_argument("--precision", choices=["fp32", "tf32", "bf16"])
    how.add_argument(
        "--balancer", metavar="NAME[:OPTION=VALUE,...]", help="of runs that train the encoder"
    )
    how.add_argument(
        "--log_conflicts", type=int, metavar="K", help="in runs that train the encoder"
    )

    where = parser.add_argument_group("this machine")
    where.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    where.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    where.add_argument("--device", help="auto, cpu, cuda")
    where.add_argument(
        "--num_workers", type=int, metavar="N", help="processes of each run that read batches"
    )
    where.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once (default: one a GPU, without GPU one)"
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
    action.add_argument(
        "--lr-sweep",
        action="store_true",
        help="find the learning rates of frozen runs on dev, up to --steps, and write "
        "OUT/learning_rates.yaml",
    )
    parser.add_argument("--rates", metavar="R,...", help="of --lr-sweep (default 1e-5 to 1e-1)")
    action.add_argument("--run", metavar="RUN", help="execute only this run, such as a/seed0/ks")


def run(arguments: argparse.Namespace) -> None:
    """Execute the study and write its report, or show its state or its commands.

    Raises:
        UserError: the folder has a study with other settings, or a setting is wrong.
        SystemExit: a run failed.
        Stopped: a signal came; the runs are saved.
    """
    from s3prl_mtl.study.commands import script
    from s3prl_mtl.study.record import survey
    from s3prl_mtl.study.settings import read_settings

    out = Path(os.path.abspath(arguments.out))
    _check_positive("--jobs", arguments.jobs)
    _check_positive("--steps", arguments.steps)
    if arguments.lr_sweep:
        _sweep(arguments, out)
        return
    if arguments.rates:
        raise UserError(
            "The flag has no effect without --lr-sweep.",
            where="--rates",
            code="conflicting-options",
        )
    saved = read_settings(out)
    settings = _settings(arguments, saved)
    if arguments.status:
        _show(settings, out, arguments.jobs)
        return
    if arguments.run is not None:
        chosen = [settings.plan.run(arguments.run)]
    else:
        # Of a study with more scenarios, only those that the flag names are executed.
        scenarios = arguments.scenario and _words(arguments.scenario)
        chosen = settings.plan.runs_of(scenarios or settings.plan.scenarios)
    if arguments.print:
        states = survey(settings.plan.runs, out)
        print(script([run for run in chosen if states[run.name].status != "done"], settings, out))
        return
    if arguments.slurm:
        from s3prl_mtl.study.settings import write_settings
        from s3prl_mtl.study.slurm import write_slurm

        write_settings(settings, out)
        states = survey(settings.plan.runs, out)
        path = write_slurm(chosen, states, out, arguments.jobs)
        OUTPUT.print(f"Submit with: bash {path}", soft_wrap=True, markup=False, highlight=False)
        return
    _execute(arguments, settings, out, chosen)


def _sweep(arguments: argparse.Namespace, out: Path) -> None:
    from dataclasses import replace

    from s3prl_mtl.study.execution import Execution, lock_study, visible_gpus
    from s3prl_mtl.study.learning_rates import DEFAULT_RATES, FILE, sweep
    from s3prl_mtl.study.settings import SWEEP_FILE, read_settings, refuse_changes, write_settings

    saved = read_settings(out, SWEEP_FILE)
    if arguments.scenario not in (None, "a"):
        raise UserError(
            "Learning rates are found for scenario a.",
            where="--scenario",
            fix="Leave out the flag.",
            code="conflicting-options",
        )
    arguments.scenario = "a"
    settings = _settings(arguments, saved)
    if settings.steps is None:
        raise UserError(
            "The longest runs of a comparison of learning rates need a number of steps.",
            where="--steps",
            code="missing-option",
        )
    if arguments.rates:
        settings = replace(settings, rates=tuple(_numbers("--rates", arguments.rates)))
    settings = replace(settings, rates=settings.rates or DEFAULT_RATES)
    if saved is not None:
        refuse_changes(saved, settings)
    gpus = [] if arguments.device == "cpu" else visible_gpus()
    jobs = arguments.jobs or max(1, len(gpus))
    with StopSignals() as signals:
        held = lock_study(out)
        try:
            write_settings(settings, out, SWEEP_FILE)
            sweep(
                settings,
                out,
                lambda runs, commands: Execution(
                    runs, out, commands, jobs, gpus, signals
                ).execute(),
            )
        finally:
            os.close(held)
    OUTPUT.print((out / FILE).read_text(encoding="utf-8"), end="", markup=False, highlight=False)
    OUTPUT.print(f"Wrote {out / FILE}", soft_wrap=True, markup=False, highlight=False)


def _execute(
    arguments: argparse.Namespace, settings: StudySettings, out: Path, chosen: Sequence[StudyRun]
) -> None:
    from s3prl_mtl.study.commands import commands_of
    from s3prl_mtl.study.execution import Execution, lock_study, visible_gpus
    from s3prl_mtl.study.record import survey
    from s3prl_mtl.study.settings import write_settings

    runs = settings.plan.runs
    gpus = [] if arguments.device == "cpu" else visible_gpus()
    # One run of a study: the jobs of a cluster execute many of them beside each other.
    alone = arguments.run is not None
    jobs = 1 if alone else arguments.jobs or max(1, len(gpus))
    with StopSignals() as signals:
        held = None if alone else lock_study(out)
        try:
            if alone:
                _check_needs(chosen[0], survey(runs, out))
            else:
                write_settings(settings, out)
            execution = Execution(
                runs, out, lambda run: commands_of(run, settings, out), jobs, gpus, signals
            )
            states = execution.execute(chosen)
        finally:
            if held is not None:
                os.close(held)
    if not alone:
        _show(settings, out, jobs)
        if any(state.status == "done" for state in states.values()):
            write_report(out, out)
    missing = [run.name for run in chosen if states[run.name].status != "done"]
    if missing:
        logger.error("%d runs are not done. The same command starts them again.", len(missing))
        raise SystemExit(RUN_FAILED)


def _check_needs(run: StudyRun, states: Mapping[str, RunState]) -> None:
    missing = [need for need in run.needs if states[need].status != "done"]
    if missing:
        raise UserError(
            f"{run.name} starts from runs that are not done: {', '.join(missing)}.",
            where=f"--run {run.name}",
            fix="Execute these first.",
            code="checkpoint-missing",
        )


def _show(settings: StudySettings, out: Path, jobs: int | None) -> None:
    from s3prl_mtl.study.record import survey
    from s3prl_mtl.study.status import status_table, summary, time_left

    runs = settings.plan.runs
    states = survey(runs, out)
    OUTPUT.print(status_table(runs, states, out))
    running = sum(state.status == "running" for state in states.values())
    left = time_left(runs, states, out, jobs or max(1, running), settings.steps)
    OUTPUT.print(summary(states, left), highlight=False)


def _settings(arguments: argparse.Namespace, saved: StudySettings | None) -> StudySettings:
    """The settings of the flags over those of `study.json`.

    Raises:
        UserError: no encoder or task is named, or settings differ from those of `study.json`.
    """
    from dataclasses import replace

    from s3prl_mtl.registry.task_names import choose_tasks, split_specs
    from s3prl_mtl.study.learning_rates import read_learning_rates
    from s3prl_mtl.study.plan import Plan, names_of
    from s3prl_mtl.study.settings import StudySettings, refuse_changes

    if saved is None:
        for flag, value in (("-u", arguments.upstream), ("-d", arguments.downstream)):
            if not value:
                raise UserError(
                    f"{arguments.out} is not the folder of a study yet.",
                    where=flag,
                    fix="Start one: -u hubert -d all --data DIR.",
                    code="missing-option",
                )
    plan: dict[str, Any] = {}
    if arguments.downstream:
        plan["specs"] = tuple(choose_tasks(split_specs(arguments.downstream), {}, {}))
    if arguments.scenario:
        added = saved.plan.scenarios if saved is not None else ()
        plan["scenarios"] = tuple(dict.fromkeys([*added, *_words(arguments.scenario)]))
    if arguments.seeds:
        plan["seeds"] = _seeds(arguments.seeds)
    if arguments.alphas:
        plan["alphas"] = tuple(_numbers("--alphas", arguments.alphas))
    elif "d" in plan.get("scenarios", ()) and (saved is None or not saved.plan.alphas):
        plan["alphas"] = DEFAULT_ALPHAS
    if arguments.leave_out:
        left_out = choose_tasks(split_specs(arguments.leave_out, "--leave_out"), {}, {})
        plan["leave_out"] = names_of(left_out)
    given: dict[str, Any] = {
        "plan": replace(saved.plan, **plan) if saved is not None else Plan(**plan)
    }
    for name in ("upstream", "upstream_ckpt", "steps", "override"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    if arguments.upstream_ckpt:
        given["upstream_ckpt"] = os.path.abspath(arguments.upstream_ckpt)
    for name in ("config", "frozen_config", "joint_config"):
        if getattr(arguments, name):
            files = [entry for entry in getattr(arguments, name) if entry != "none"]
            given[name] = tuple(map(_absolute_if_file, files))
    if arguments.learning_rates:
        given["learning_rates"] = read_learning_rates(arguments.learning_rates)
    for name, flags in (
        ("options", ("upstream_model_config", "upstream_feature_selection", "precision")),
        ("joint_options", ("balancer", "log_conflicts")),
        ("machine", ("data", "cache_dir", "device", "num_workers")),
    ):
        words = _flags(arguments, flags)
        if words:
            given[name] = words
    settings = replace(saved, **given) if saved is not None else StudySettings(**given)
    settings = settings.with_digests()
    if saved is not None:
        refuse_changes(saved, settings)
    return settings


PATHS = ("data", "cache_dir", "upstream_model_config")


def _flags(arguments: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, ...]:
    """The given ones of some flags of `train`, as words."""
    words: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", os.path.abspath(value) if name in PATHS else str(value)]
    return tuple(words)


def _absolute_if_file(name: str) -> str:
    """A file as an absolute path: the study may go on from another folder."""
    return os.path.abspath(name) if os.path.isfile(name) else name


def _words(text: str) -> list[str]:
    return [word for word in map(str.strip, text.split(",")) if word]


def _seeds(text: str) -> tuple[int, ...]:
    """The seeds of `--seeds 3`, or of `--seeds 3,5`."""
    try:
        numbers = [int(word) for word in _words(text)]
    except ValueError:
        numbers = []
    if not numbers or any(number < 0 for number in numbers) or numbers == [0]:
        raise UserError(
            f"{text!r} is neither a number of seeds nor a list.",
            where="--seeds",
            fix="For example 3 for the seeds 0, 1 and 2; or 7,11.",
            code="invalid-value",
        )
    return tuple(range(numbers[0])) if "," not in text else tuple(numbers)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise UserError(
            f"{text!r} is not a list of numbers.",
            where=flag,
            fix="For example 0.25,0.5.",
            code="invalid-value",
        ) from None


def _check_positive(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{value} is less than 1.", where=flag, code="invalid-value")
