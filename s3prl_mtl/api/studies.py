"""Studies: plan and execute the paper's experiments. Flags: `s3prl_mtl/cli/study.py`."""

from __future__ import annotations

import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3prl_mtl.api.calls import (
    Override,
    PathLike,
    Words,
    callable_from_python,
    listed,
    output_folder,
    split_tasks,
)
from s3prl_mtl.api.corpora import make_corpus
from s3prl_mtl.api.reports import Report, report
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import choose_tasks
from s3prl_mtl.study import learning_rates as sweeps
from s3prl_mtl.study.commands import commands_of, script
from s3prl_mtl.study.execution import Execution, lock_study, visible_gpus
from s3prl_mtl.study.learning_rates import check_rates, read_learning_rates
from s3prl_mtl.study.plan import Plan, StudyRun, names_of
from s3prl_mtl.study.record import RunStatus, started, survey
from s3prl_mtl.study.settings import (
    SWEEP_FILE,
    StudySettings,
    read_settings,
    refuse_changed_files,
    refuse_changes,
    write_settings,
)
from s3prl_mtl.study.slurm import write_slurm
from s3prl_mtl.training.signals import StopSignals

logger = logging.getLogger(__name__)

DEFAULT_ALPHAS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class PlannedStudy:
    """The runs of a study, and their state.

    Attributes:
        out: absolute path of its folder.
        settings: everything that decides its results.
        chosen: the runs to execute.
        jobs: runs at once; None for one a GPU.
        saved: the settings in the folder; None before the study was started.
    """

    out: Path
    settings: StudySettings
    chosen: Sequence[StudyRun]
    jobs: int | None
    saved: StudySettings | None = None

    def states(self) -> dict[str, RunStatus]:
        """The state of each run by its name, such as `a/seed0/ks`: `done`, `waiting`, ..."""
        return survey(self.settings.plan.runs, self.out)

    def script(self) -> str:
        """The commands of the chosen runs that are not done, as a shell script."""
        states = self.states()
        missing = [run for run in self.chosen if states[run.name].status != "done"]
        return script(missing, _checked_files(self), self.out)

    def write_slurm(self) -> Path:
        """Write job arrays of the chosen runs that are not done to `slurm`; returns the script.

        Raises:
            UserError: the runs would end with a mistake, or a config file has changed.
        """
        settings, states = _checked_files(self), self.states()
        _check_runs(self.chosen, states, settings)
        write_settings(settings, self.out)
        return write_slurm(self.chosen, states, self.out, self.jobs)


@dataclass(frozen=True)
class StudyResults:
    """An executed study.

    Attributes:
        out: its folder.
        states: the status of each run: `done`, `failed`, ...
        missing: the chosen runs that are not done; the same call starts them again.
        report: the page and the results; None if no run is done, or if only one run was executed.
    """

    out: Path
    states: Mapping[str, str]
    missing: Sequence[str]
    report: Report | None


@callable_from_python
def plan_study(
    out: PathLike,
    *,
    upstream: str | None = None,
    upstream_ckpt: PathLike | None = None,
    upstream_model_config: PathLike | None = None,
    downstream: Words | None = None,
    scenario: Words | None = None,
    seeds: int | str | Sequence[int] | None = None,
    alphas: str | Sequence[float] | None = None,
    leave_out: Words | None = None,
    steps: int | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
    frozen_config: PathLike | Sequence[PathLike] | None = None,
    joint_config: PathLike | Sequence[PathLike] | None = None,
    override: Override | None = None,
    learning_rates: PathLike | Mapping[str, float] | None = None,
    upstream_feature_selection: str | None = None,
    precision: str | None = None,
    balancer: str | None = None,
    log_conflicts: int | None = None,
    data: PathLike | None = None,
    cache_dir: PathLike | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    jobs: int | None = None,
    run: str | None = None,
) -> PlannedStudy:
    """Plan a study without executing it: `study --status`, `--print` and `--slurm`.

    Args:
        as of `study`.

    Returns:
        the runs, with their states, commands and SLURM jobs.

    Raises:
        UserError: a setting is wrong, or runs of the study were started with other settings.
    """
    return _plan(Namespace(**locals()))


@callable_from_python
def study(
    out: PathLike,
    *,
    upstream: str | None = None,
    upstream_ckpt: PathLike | None = None,
    upstream_model_config: PathLike | None = None,
    downstream: Words | None = None,
    scenario: Words | None = None,
    seeds: int | str | Sequence[int] | None = None,
    alphas: str | Sequence[float] | None = None,
    leave_out: Words | None = None,
    steps: int | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
    frozen_config: PathLike | Sequence[PathLike] | None = None,
    joint_config: PathLike | Sequence[PathLike] | None = None,
    override: Override | None = None,
    learning_rates: PathLike | Mapping[str, float] | None = None,
    upstream_feature_selection: str | None = None,
    precision: str | None = None,
    balancer: str | None = None,
    log_conflicts: int | None = None,
    data: PathLike | None = None,
    cache_dir: PathLike | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    jobs: int | None = None,
    run: str | None = None,
) -> StudyResults:
    """Execute the paper's experiments, each run in a process of its own: the command `study`.

    What to run and its settings are needed once, and then read from `study.json`. A call goes on
    where an earlier one was interrupted.

    Args:
        out: folder of the study.
        upstream: the encoder, such as `hubert`.
        upstream_ckpt: its checkpoint file.
        upstream_model_config: its config file.
        downstream: the tasks: `["asr", "ks"]` or `"all,-ks"`.
        scenario: of a, b1, b2, c and d; by default a, b1, b2 and c. Those that they start from are
            added.
        seeds: the number of seeds, from 0; or a list.
        alphas: of scenario d; by default 0.25, 0.5 and 0.75.
        leave_out: leave out only these tasks in turn, not all.
        steps: of every run; by default those of its config.
        config: YAML files or packaged settings of every run.
        frozen_config: of runs with a frozen encoder, before `config`; `{task}` is the run's task,
            `none` is no file.
        joint_config: of runs that train the encoder, before `config`.
        override: settings of every run by dotted key, or the text of `-o`.
        learning_rates: `optimizer.lr` of runs with a frozen encoder by task, or a file of them.
        upstream_feature_selection: `hidden_states`, `layer_results` or `last_hidden_state`.
        precision: `fp32`, `tf32` or `bf16`.
        balancer: of runs that train the encoder.
        log_conflicts: in runs that train the encoder.
        data: folder of the corpora; by default `$SUPERB_DATA`.
        cache_dir: folder of downloads and scanned corpora.
        device: `auto`, `cpu`, `cuda`.
        num_workers: processes of each run that read batches.
        jobs: runs at once; by default as in the last call, at first one a GPU, without a GPU one.
        run: execute only this run, such as `a/seed0/ks`.

    Returns:
        the state of the runs, and the page of the report. Runs that failed are in `missing`, with
        their output in their folders.

    Raises:
        UserError: a setting, the encoder or a corpus is wrong, or runs of the study were started
            with other settings.
        Stopped: a signal came; the runs are saved. A `KeyboardInterrupt`.
    """
    arguments = Namespace(**locals())
    return _execute(_plan(arguments), device, alone=run is not None)


@callable_from_python
def sweep_learning_rates(
    out: PathLike,
    *,
    upstream: str | None = None,
    upstream_ckpt: PathLike | None = None,
    upstream_model_config: PathLike | None = None,
    downstream: Words | None = None,
    scenario: Words | None = None,
    seeds: int | str | Sequence[int] | None = None,
    alphas: str | Sequence[float] | None = None,
    leave_out: Words | None = None,
    steps: int | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
    frozen_config: PathLike | Sequence[PathLike] | None = None,
    joint_config: PathLike | Sequence[PathLike] | None = None,
    override: Override | None = None,
    learning_rates: PathLike | Mapping[str, float] | None = None,
    upstream_feature_selection: str | None = None,
    precision: str | None = None,
    balancer: str | None = None,
    log_conflicts: int | None = None,
    data: PathLike | None = None,
    cache_dir: PathLike | None = None,
    device: str | None = None,
    num_workers: int | None = None,
    jobs: int | None = None,
    rates: str | Sequence[float] | None = None,
) -> dict[str, float]:
    """Find the learning rates of frozen runs on dev, up to `steps`: `study --lr-sweep`.

    Args:
        rates: to compare; by default 1e-5 to 1e-1. The others are those of `study`.

    Returns:
        the best rate of each task, as in `learning_rates.yaml` of the folder.

    Raises:
        UserError: `steps` is missing, or a setting is wrong.
        Stopped: a signal came; the runs are saved. A `KeyboardInterrupt`.
    """
    arguments = Namespace(**locals())
    folder = output_folder(out, "OUT")
    _check_positive("--jobs", jobs)
    _check_positive("--steps", steps)
    saved = read_settings(folder, SWEEP_FILE)
    if scenario is not None and _words("--scenario", scenario) != ["a"]:
        raise UserError(
            "Learning rates are found for scenario a.",
            where="--scenario",
            fix="Leave out the flag.",
            code="conflicting-options",
        )
    _refuse_without_effect_on_sweeps(arguments)
    arguments.scenario = "a"
    given = _settings(arguments, saved)
    if given.steps is None:
        raise UserError(
            "The longest runs of a comparison of learning rates need a number of steps.",
            where="--steps",
            code="missing-option",
        )
    if rates:
        given = replace(given, rates=tuple(_numbers("--rates", rates)))
    given = replace(given, rates=given.rates or sweeps.DEFAULT_RATES)
    found = started(sweeps.runs_so_far(saved, folder), folder) if saved is not None else []
    if saved is not None:
        refuse_changes(saved, given, found)
    settings = given.with_digests()
    if saved is not None:
        refuse_changed_files(saved, settings, found)
    _check_runs(settings.plan.runs, {}, settings)
    gpus = [] if device == "cpu" else visible_gpus()
    places = settings.jobs or max(1, len(gpus))
    with StopSignals() as signals:
        held = lock_study(folder)
        try:
            write_settings(settings, folder, SWEEP_FILE)
            sweeps.sweep(
                settings,
                folder,
                lambda runs, commands: Execution(
                    runs, folder, commands, places, gpus, signals
                ).execute(),
            )
        finally:
            os.close(held)
    return read_learning_rates(folder / sweeps.FILE)


DEMO_FOLDER = Path(".demo")

# Whatever the environment says: the matrix products of the demo are too small for two threads,
# which would wait for each other, spinning, during half of a step.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

LEFT_OUT_OF_DEMO = "asr"
"""The task of the pair of (b-2) and (c): without the most expensive one, (b-2) is done first, and
(c) is trained beside the end of (b-1)."""


@callable_from_python
def demo(
    folder: PathLike = DEMO_FOLDER,
    *,
    full: bool = False,
    steps: int | None = None,
    progress: bool | None = False,
) -> StudyResults:
    """Run a study of the nine tasks on the synthetic mini corpus: the command `demo`.

    Args:
        folder: of corpus and study; an interrupted demo is resumed there.
        full: leave each task out in turn, not only one: 28 trainings in place of 12.
        steps: of every training; by default those of the packaged settings `demo`.
        progress: show the progress of the corpus; None on a terminal only.

    Returns:
        the state of the runs, and the page of the report.

    Raises:
        UserError: the folder cannot be used, or has another study.
        Stopped: a signal came; the runs are saved. A `KeyboardInterrupt`.
    """
    place = output_folder(folder, "FOLDER")
    _check_positive("--steps", steps)
    logger.info("Making the mini corpus in %s.", place / "corpus")
    corpus = make_corpus(place / "corpus", size="mini", seed=0, progress=progress)
    left_out: str | None = "all" if full else LEFT_OUT_OF_DEMO
    if not full and (place / "study.json").is_file():
        left_out = None  # a full demo goes on as such
    with _environment(ONE_THREAD):
        return study(
            place,
            upstream="hubert_tiny",
            downstream="all",
            leave_out=left_out,
            steps=steps,
            frozen_config=["demo", "demo_frozen"],
            joint_config="demo",
            data=corpus,
            cache_dir=place / "cache",
            jobs=2,
        )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the processes that are started."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _refuse_without_effect_on_sweeps(arguments: Namespace) -> None:
    flags = {name: flag for name, (flag, _) in WITH_EFFECT_ON.items()}
    for name, flag in (flags | {"learning_rates": "--learning-rates"}).items():
        if getattr(arguments, name) is not None:
            raise UserError(
                "The flag has no effect on a comparison of learning rates: its runs are heads on "
                "the frozen encoder, with the rates of --rates.",
                where=flag,
                fix="Leave it out.",
                code="conflicting-options",
            )
    if arguments.seeds is not None and len(_seeds(arguments.seeds)) > 1:
        raise UserError(
            "Learning rates are compared with one seed.",
            where="--seeds",
            fix="Leave out the flag, or name one seed in a list: --seeds 7,",
            code="conflicting-options",
        )


def _plan(arguments: Namespace) -> PlannedStudy:
    out = output_folder(arguments.out, "OUT")
    _check_positive("--jobs", arguments.jobs)
    _check_positive("--steps", arguments.steps)
    saved = read_settings(out)
    settings = _settings(arguments, saved)
    if saved is not None:
        refuse_changes(saved, settings, started(saved.plan.runs, out))
    if settings != saved:
        _name_flags_without_effect(arguments, settings.plan)
    if arguments.run is not None:
        chosen = [settings.plan.run(arguments.run)]
    else:
        # Of a study with more scenarios, only those that are named are executed.
        scenarios = arguments.scenario and _words("--scenario", arguments.scenario)
        chosen = settings.plan.runs_of(scenarios or settings.plan.scenarios)
    return PlannedStudy(out, settings, chosen, settings.jobs, saved)


WITH_EFFECT_ON = {
    "alphas": ("--alphas", {"d"}),
    "leave_out": ("--leave_out", {"b2", "c", "d"}),
    "joint_config": ("--joint_config", {"b1", "b2"}),
    "balancer": ("--balancer", {"b1", "b2"}),
    "log_conflicts": ("--log_conflicts", {"b1", "b2"}),
}
"""Arguments that have an effect on some scenarios, with their flags."""


def _name_flags_without_effect(arguments: Namespace, plan: Plan) -> None:
    """Name flags that do not concern the scenarios of the study: they are kept for later ones."""
    for name, (flag, scenarios) in WITH_EFFECT_ON.items():
        if getattr(arguments, name) is not None and not scenarios & set(plan.needed_scenarios):
            logger.warning(
                "%s has no effect on scenario %s; it is kept for scenarios that are added later.",
                flag,
                ", ".join(plan.needed_scenarios),
            )


def _checked_files(plan: PlannedStudy) -> StudySettings:
    """The settings with the digests of the config files.

    Raises:
        UserError: a file is missing, or has changed since runs were started with it.
    """
    settings = plan.settings.with_digests()
    if plan.saved is not None:
        refuse_changed_files(plan.saved, settings, started(plan.saved.plan.runs, plan.out))
    return settings


def _check_runs(
    runs: Sequence[StudyRun], states: Mapping[str, RunStatus], settings: StudySettings
) -> None:
    """Check the runs that are not done."""
    from s3prl_mtl.study.preflight import check_runs

    done = {name for name, state in states.items() if state.status == "done"}
    check_runs([run for run in runs if run.name not in done], settings)


def _execute(plan: PlannedStudy, device: str | None, alone: bool) -> StudyResults:
    """Execute the chosen runs.

    Args:
        plan: the study.
        device: of the runs.
        alone: one run of a study: the jobs of a cluster execute many of them beside each other.
    """
    settings, out, runs = _checked_files(plan), plan.out, plan.settings.plan.runs
    if not alone:
        _check_runs(plan.chosen, plan.states(), settings)
    gpus = [] if device == "cpu" else visible_gpus()
    jobs = 1 if alone else plan.jobs or max(1, len(gpus))
    with StopSignals() as signals:
        held = None if alone else lock_study(out)
        try:
            if alone:
                _check_needs(plan.chosen[0], survey(runs, out))
            else:
                write_settings(settings, out)
            execution = Execution(
                runs, out, lambda run: commands_of(run, settings, out), jobs, gpus, signals
            )
            states = execution.execute(plan.chosen)
        finally:
            if held is not None:
                os.close(held)
    some = any(state.status == "done" for state in states.values())
    return StudyResults(
        out,
        {name: state.status for name, state in states.items()},
        [run.name for run in plan.chosen if states[run.name].status != "done"],
        report(out) if some and not alone else None,
    )


def _check_needs(run: StudyRun, states: Mapping[str, RunStatus]) -> None:
    missing = [need for need in run.needs if states[need].status != "done"]
    if missing:
        raise UserError(
            f"{run.name} starts from runs that are not done: {', '.join(missing)}.",
            where=f"--run {run.name}",
            fix="Execute these first.",
            code="checkpoint-missing",
        )


def _settings(arguments: Namespace, saved: StudySettings | None) -> StudySettings:
    """The settings of the flags over those of `study.json`.

    Raises:
        UserError: no encoder or task is named, or a setting is wrong.
    """
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
        plan["specs"] = _tasks("-d", arguments.downstream)
    if arguments.scenario:
        added = saved.plan.scenarios if saved is not None else ()
        plan["scenarios"] = tuple(
            dict.fromkeys([*added, *_words("--scenario", arguments.scenario)])
        )
    if arguments.seeds is not None:
        plan["seeds"] = _seeds(arguments.seeds)
    if arguments.alphas:
        plan["alphas"] = tuple(_numbers("--alphas", arguments.alphas))
    elif "d" in plan.get("scenarios", ()) and (saved is None or not saved.plan.alphas):
        plan["alphas"] = DEFAULT_ALPHAS
    if arguments.leave_out:
        plan["leave_out"] = names_of(_tasks("--leave_out", arguments.leave_out))
    given: dict[str, Any] = {
        "plan": replace(saved.plan, **plan) if saved is not None else Plan(**plan)
    }
    for name in ("upstream", "steps", "jobs"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    if arguments.override is not None:
        given["override"] = _override_text(arguments.override)
    if arguments.upstream_ckpt:
        given["upstream_ckpt"] = os.path.abspath(arguments.upstream_ckpt)
    for name in ("config", "frozen_config", "joint_config"):
        if getattr(arguments, name):
            files = [entry for entry in listed(getattr(arguments, name)) if entry != "none"]
            given[name] = tuple(map(_absolute_if_file, files))
    if arguments.learning_rates:
        given["learning_rates"] = _learning_rates(arguments.learning_rates, given["plan"].tasks)
    for name, flags in (
        ("options", ("upstream_model_config", "upstream_feature_selection", "precision")),
        ("joint_options", ("balancer", "log_conflicts")),
        ("machine", ("data", "cache_dir", "device", "num_workers")),
    ):
        words = _flags(arguments, flags)
        if words:
            given[name] = words
    return replace(saved, **given) if saved is not None else StudySettings(**given)


def _tasks(flag: str, given: Words) -> tuple[str, ...]:
    """The tasks of a flag, as after `-d`."""
    _words(flag, given)
    return tuple(choose_tasks(split_tasks(given, flag), {}, {}, None if flag == "-d" else flag))


def _learning_rates(
    given: PathLike | Mapping[str, float], tasks: Sequence[str]
) -> dict[str, float]:
    """The learning rates by task. A file may have those of other tasks than the study has.

    Raises:
        UserError: there is no such task, or a value is not a rate.
    """
    flag = "--learning-rates"
    if isinstance(given, Mapping):
        rates, where = check_rates(given, flag), flag
    else:
        rates, where = read_learning_rates(Path(given)), f"{flag} {given}"
    found = {}
    for task, rate in rates.items():
        (name,) = [task] if task in tasks else choose_tasks([task], {}, {}, f"{task} in {where}")
        found[name] = rate
    return found


PATHS = ("data", "cache_dir", "upstream_model_config")


def _flags(arguments: Namespace, names: tuple[str, ...]) -> tuple[str, ...]:
    """The given ones of some flags of `train`, as words."""
    words: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", os.path.abspath(value) if name in PATHS else str(value)]
    return tuple(words)


def _absolute_if_file(name: PathLike) -> str:
    """A file as an absolute path: the study may go on from another folder."""
    return os.path.abspath(name) if os.path.isfile(name) else os.fspath(name)


def _override_text(override: Override) -> str:
    """The text of `-o`: the runs of a study are commands."""
    if isinstance(override, str):
        return override
    for key, value in override.items():
        if ",," in str(value):
            raise UserError(
                "The value contains two commas in a row, which separate settings.",
                where=f"override, {key}",
                fix="Put the value into a config file.",
                code="invalid-value",
            )
    return ",,".join(f"{key}={json.dumps(value)}" for key, value in override.items())


def _words(flag: str, given: str | Iterable[object]) -> list[str]:
    """The entries of a list, or of the text of a flag.

    Raises:
        UserError: there is none, or one is given twice.
    """
    entries = given.split(",") if isinstance(given, str) else map(str, given)
    words = [word for word in map(str.strip, entries) if word]
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None or not words:
        raise UserError(
            f"{twice} is given twice." if twice is not None else "The list is empty.",
            where=flag,
            fix=f"For example {EXAMPLES[flag]}.",
            code="conflicting-options" if twice is not None else "invalid-value",
        )
    return words


EXAMPLES = {
    "-d": "ks,er",
    "--leave_out": "ks,er",
    "--scenario": "a,b1",
    "--seeds": "3 for the seeds 0, 1 and 2; or 7,11",
    "--alphas": "0.25,0.5",
    "--rates": "1e-4,1e-3",
}


def _seeds(given: int | str | Sequence[int]) -> tuple[int, ...]:
    """The seeds of `--seeds 3`, or of `--seeds 3,5`."""
    text = str(given) if isinstance(given, int | str) else ",".join(map(str, given))
    words = _words("--seeds", text)
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        numbers = []
    many = "," in text or not isinstance(given, int | str)
    if not numbers or any(number < 0 for number in numbers) or (numbers == [0] and not many):
        raise UserError(
            f"{text!r} is neither a number of seeds nor a list.",
            where="--seeds",
            fix=f"For example {EXAMPLES['--seeds']}.",
            code="invalid-value",
        )
    return tuple(numbers) if many else tuple(range(numbers[0]))


def _numbers(flag: str, given: str | Sequence[float]) -> list[float]:
    """Finite numbers that differ in the names of runs, which have six digits of them."""
    words = _words(flag, given)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    names = {f"{number:g}" for number in numbers}
    if not all(map(math.isfinite, numbers)) or len(names) < len(words):
        raise UserError(
            f"{','.join(words)!r} is not a list of different numbers.",
            where=flag,
            fix=f"For example {EXAMPLES[flag]}.",
            code="invalid-value",
        )
    return numbers


def _check_positive(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{value} is less than 1.", where=flag, code="invalid-value")
