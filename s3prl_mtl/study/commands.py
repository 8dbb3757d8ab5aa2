"""Command lines of the runs of a study, to execute or to print."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.study.plan import SCENARIOS, StudyRun
from s3prl_mtl.study.settings import StudySettings

MERGED = "merged.ckpt"
"""In the folder of a run of scenario d: the interpolated encoder."""


@dataclass(frozen=True)
class Command:
    """A command line of this package.

    Attributes:
        words: after `s3prl-mtl`.
        creates: a file that makes the command unnecessary if it exists.
    """

    words: tuple[str, ...]
    creates: Path | None = None

    def __str__(self) -> str:
        """The command line, quoted for a shell."""
        line = shlex.join(["s3prl-mtl", *self.words])
        return f"test -e {shlex.quote(str(self.creates))} || {line}" if self.creates else line


def commands_of(
    run: StudyRun, settings: StudySettings, out: Path, rate: float | None = None
) -> list[Command]:
    """The commands of a run, to be executed one after the other.

    Args:
        run: of the plan.
        settings: of the study.
        out: absolute path of the folder of the study: the runs record paths to others.
        rate: learning rate of a run that only compares rates, on dev.
    """
    scenario = SCENARIOS[run.scenario]
    folder = out / run.name
    words = ["train", "-u", settings.upstream]
    if settings.upstream_ckpt:
        words += ["-k", settings.upstream_ckpt]
    words += ["-d", ",".join(map(settings.plan.spec, run.tasks))]
    for name in settings.configs_of_run(run):
        words += ["-c", name]
    before = []
    if scenario.heads:
        # The folder of all heads: runs of other tasks in it are left out.
        words += ["-i", str(out / scenario.heads / f"seed{run.seed}"), "--init_heads_only"]
    if scenario.frozen:
        words.append("--freeze_upstream")
    else:
        words += settings.joint_options
    if scenario.encoder:
        encoder = out / run.needs[0]
        if scenario.merged:
            base = settings.upstream_ckpt or settings.upstream
            merged = folder / MERGED
            merge = ["merge", "--base", base, "--tuned", str(encoder)]
            merge += ["--alpha", f"{run.alpha:g}", "-o", str(merged)]
            before.append(Command(tuple(merge), creates=merged))
            encoder = merged
        words += ["--init_upstream_ckpt", str(encoder)]
    override = override_of(run, settings, rate)
    if override:
        words += ["-o", override]
    steps = run.steps or settings.steps
    if steps is not None:
        words += ["--steps", str(steps)]
    words += [*settings.options, *settings.machine]
    words += ["--seed", str(run.seed), "-p", str(folder), "-a"]
    return [*before, Command(tuple(words))]


def override_of(run: StudyRun, settings: StudySettings, rate: float | None = None) -> str:
    """The text of `-o` of a run; arguments as of `commands_of`."""
    overrides = [settings.override] if settings.override else []
    if rate is not None:
        # Results on test are not to be seen before the rate is chosen.
        overrides += [f"optimizer.lr={rate:g}", "runner.test_last=false", "runner.test_first=false"]
    elif run.frozen and run.tasks[0] in settings.learning_rates:
        overrides.append(f"optimizer.lr={settings.learning_rates[run.tasks[0]]:g}")
    return ",,".join(overrides)


def script(runs: Iterable[StudyRun], settings: StudySettings, out: Path) -> str:
    """The commands of runs as a shell script."""
    lines = []
    for run in runs:
        lines.append(f"# {run.name}")
        lines += map(str, commands_of(run, settings, out))
    return "\n".join(lines)
