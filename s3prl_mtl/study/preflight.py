"""Checks of a study before anything is written: the mistakes that its runs would end with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from s3prl_mtl.balancing import make_balancer
from s3prl_mtl.checkpoint.compatibility import requiring_all_tasks
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.config.overrides import ARGUMENT_KEYS
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.study.commands import override_of
from s3prl_mtl.study.plan import StudyRun
from s3prl_mtl.study.settings import StudySettings
from s3prl_mtl.training.build import check_layouts
from s3prl_mtl.upstreams import check_upstream


def check_runs(runs: Sequence[StudyRun], settings: StudySettings) -> None:
    """Check the encoder, and for each kind of run its config, balancer and the corpora.

    Runs of a kind have the same settings: those of the same tasks whose encoder is frozen, or not.

    Args:
        runs: to check; nothing is checked without any.
        settings: of the study.

    Raises:
        UserError: the encoder, a setting or corpora are wrong.
    """
    if not runs:
        return
    check_upstream(settings.upstream, settings.upstream_ckpt)
    kinds = {(run.frozen, run.tasks): run for run in reversed(runs)}
    configs = []
    # Those with most tasks first: one error names all tasks that lack a folder.
    for run in sorted(kinds.values(), key=lambda run: -len(run.tasks)):
        with requiring_all_tasks(), _naming(run, settings):
            # The runs log the warnings.
            plain = build_config(
                settings.configs_of_run(run),
                _flags(run, settings),
                override_of(run, settings),
                deferred=DeferredLog(),
            )
        config = resolve(plain)
        if config.upstream.config is not None:
            read_yaml(config.upstream.config, "-g")
        with _naming(run, settings):
            make_balancer(config.balancer, config.downstream, config.seed)
        configs.append(config)
    checked: set[tuple[str, str]] = set()
    for config in configs:
        corpora = {task: str(config.tasks[task].downstream_expert) for task in config.downstream}
        check_layouts(config, [task for task in corpora if (task, corpora[task]) not in checked])
        checked |= set(corpora.items())


@contextmanager
def _naming(run: StudyRun, settings: StudySettings) -> Iterator[None]:
    """Name a run that lacks tasks of the study in errors: a setting may name one of these.

    Raises:
        UserError: as raised inside, with the name of the run.
    """
    try:
        yield
    except UserError as cause:
        lacking = [task for task in settings.plan.tasks if task not in run.tasks]
        if type(cause) is not UserError or cause.where is None or not lacking:
            raise
        place = f"{cause.where}, in the run {run.name} (without {', '.join(lacking)})"
        raise UserError(cause.what, where=place, fix=cause.fix, code=cause.code) from cause


def _flags(run: StudyRun, settings: StudySettings) -> dict[str, Any]:
    """The settings of the flags of a run, by dotted key."""
    words = [*settings.options, *settings.machine, *(() if run.frozen else settings.joint_options)]
    flags: dict[str, Any] = {
        "upstream.name": settings.upstream,
        "upstream.ckpt": settings.upstream_ckpt,
        "downstream": list(map(settings.plan.spec, run.tasks)),
        "runner.total_steps": run.steps or settings.steps,
        "upstream.freeze": run.frozen or None,
        "seed": run.seed,
        **{
            ARGUMENT_KEYS[flag.removeprefix("--")]: int(value) if value.isdigit() else value
            for flag, value in zip(words[::2], words[1::2], strict=True)
        },
    }
    return {key: value for key, value in flags.items() if value is not None}
