"""The settings of a study, as `study.json` keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.settings import find_settings, packaged_settings
from s3prl_mtl.study.plan import Plan, StudyRun

FILE = "study.json"
SWEEP_FILE = "sweep.json"
FORMAT = 1

SUPERB = "superb/{task}"
"""The default of `frozen_config`: packaged settings of a task, where there are some."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Everything that decides the results of a study, and the paths that may change.

    Attributes:
        plan: its runs.
        upstream: the word after `-u`.
        upstream_ckpt: the file after `-k`.
        steps: of every run; None for those of its config.
        config: files or packaged settings of every run.
        frozen_config: of runs with a frozen encoder, before `config`; `{task}` is the run's task.
            None for `SUPERB`.
        joint_config: of runs that train the encoder, before `config`.
        override: the text of `-o`.
        learning_rates: of runs with a frozen encoder, by task.
        options: further words of every run.
        joint_options: further words of runs that train the encoder.
        rates: learning rates to compare.
        machine: words that do not change results: folders, device, workers.
        jobs: runs at once in the last execution; None for one a GPU.
        digests: of the files of `config` and others, by name.
    """

    plan: Plan
    upstream: str
    upstream_ckpt: str | None = None
    steps: int | None = None
    config: tuple[str, ...] = ()
    frozen_config: tuple[str, ...] | None = None
    joint_config: tuple[str, ...] = ()
    override: str | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    joint_options: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    machine: tuple[str, ...] = ()
    jobs: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def configs_of(self, task: str | None) -> list[str]:
        """The words after `-c` of a run with a frozen encoder, or of one that trains it.

        Args:
            task: of a run with a frozen encoder; None for the others.
        """
        if task is None:
            return [*self.joint_config, *self.config]
        if self.frozen_config is None:
            name = SUPERB.format(task=task)
            own = [name] if name in packaged_settings() else []
        else:
            own = [name.replace("{task}", task) for name in self.frozen_config]
        return [*own, *self.config]

    def with_digests(self) -> StudySettings:
        """The same with the digests of all config files.

        Raises:
            UserError: one does not exist.
        """
        names = {name for task in (None, *self.plan.tasks) for name in self.configs_of(task)}
        content = {name: find_settings(name).read_bytes() for name in sorted(names)}
        digests = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
        return replace(self, digests=digests)

    def configs_of_run(self, run: StudyRun) -> list[str]:
        """The words after `-c` of a run."""
        return self.configs_of(run.tasks[0] if run.frozen else None)

    def to_plain(self) -> dict[str, Any]:
        """The content of `study.json`: what reports read, and `settings`."""
        plan = self.plan
        return {
            "format": FORMAT,
            "upstream": self.upstream,
            "tasks": list(plan.tasks),
            "seeds": list(plan.seeds),
            "alphas": list(plan.alphas),
            "steps": self.steps,
            "runs": [asdict(run) for run in plan.runs],
            "settings": asdict(self),
        }


def read_settings(out: Path, file: str = FILE) -> StudySettings | None:
    """The settings of the study in a folder; None if it has none.

    Args:
        out: the folder.
        file: `FILE`, or `SWEEP_FILE` for a comparison of learning rates.

    Raises:
        UserError: `study.json` is damaged or of another version.
    """
    path = out / file
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} instead of {FORMAT}")
        values = _tuples(content["settings"])
        return StudySettings(**{**values, "plan": Plan(**values["plan"])})
    except (ValueError, KeyError, TypeError) as cause:
        raise UserError(
            f"The file is not a valid study: {cause}.",
            where=str(path),
            fix="Choose another folder.",
            code="file-malformed",
        ) from cause


def write_settings(settings: StudySettings, out: Path, file: str = FILE) -> None:
    """Write `study.json`, or `file`."""
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / file, json.dumps(settings.to_plain(), indent=1) + "\n")


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


FLAGS = {
    "specs": "-d",
    "scenarios": "--scenario",
    "seeds": "--seeds",
    "alphas": "--alphas",
    "leave_out": "--leave_out",
    "upstream": "-u",
    "upstream_ckpt": "-k",
    "steps": "--steps",
    "config": "-c",
    "frozen_config": "--frozen_config",
    "joint_config": "--joint_config",
    "override": "-o",
    "learning_rates": "--learning-rates",
    "options": "-s, -g, --precision",
    "joint_options": "--balancer, --log_conflicts",
    "rates": "--rates",
}
"""The flag of each setting, for errors."""


JOINT = ("joint_config", "joint_options")
"""Settings of runs that train the encoder only."""
GROWING = ("scenarios", "seeds", "alphas", "leave_out")
"""Settings that may be added to."""


def refuse_changes(old: StudySettings, new: StudySettings, started: Collection[StudyRun]) -> None:
    """Refuse settings that runs of a study were not started with.

    A study may grow: scenarios, seeds, alphas and tasks to leave out may be added, not removed.

    Args:
        old: of the study.
        new: of this call.
        started: the runs that have results or a checkpoint.

    Raises:
        UserError: names the flag with its old and its new value.
    """
    was, now = _flat(old), _flat(new)
    for key, flag in FLAGS.items():
        before, after = was[key], now[key]
        affected = [run for run in started if key not in JOINT or not run.frozen]
        if before == after or not affected:
            continue
        if key not in GROWING:
            raise UserError(
                f"The study was started with {flag} {_shown(before)}, not {_shown(after)}.",
                where=flag,
                fix="Leave out the flag to go on with that study, or choose another folder.",
                code="resume-conflict",
            )
        if not set(before) <= set(after):
            every = [*before, *(value for value in after if value not in before)]
            raise UserError(
                f"The study was started with {flag} {_shown(before)}: values can be added, not "
                "removed.",
                where=flag,
                fix=f"Name all of them: {flag} {_shown(tuple(every))}; or choose another folder.",
                code="resume-conflict",
            )


def refuse_changed_files(
    old: StudySettings, new: StudySettings, started: Iterable[StudyRun]
) -> None:
    """Refuse config files that have changed since runs were started with them.

    Args:
        old: of the study.
        new: the same with the present digests.
        started: the runs that have results or a checkpoint.

    Raises:
        UserError: names the file.
    """
    for name in dict.fromkeys(name for run in started for name in old.configs_of_run(run)):
        if name in old.digests and old.digests[name] != new.digests[name]:
            raise UserError(
                "The config file has changed since runs of the study were started with it.",
                where=name,
                fix="Restore its content to go on with that study, or choose another folder. "
                "--status works meanwhile.",
                code="resume-conflict",
            )


def _flat(settings: StudySettings) -> dict[str, Any]:
    plan = {entry.name: getattr(settings.plan, entry.name) for entry in fields(Plan)}
    own = {entry.name: getattr(settings, entry.name) for entry in fields(StudySettings)}
    return {
        **own,
        **plan,
        "scenarios": settings.plan.needed_scenarios,
        "leave_out": settings.plan.left_out,
    }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={entry}" for key, entry in value.items()) or "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
