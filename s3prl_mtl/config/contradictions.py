"""Settings that contradict each other, or that reach further than their file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from s3prl_mtl.config.optimizer_groups import ENCODER, PARTS
from s3prl_mtl.config.overrides import task_specs
from s3prl_mtl.config.task_blocks import Config, Layer
from s3prl_mtl.data.task_sampling import tasks_of_steps
from s3prl_mtl.errors import UserError


def refuse_different_runs(files: Sequence[tuple[Config, str | Path]], known: set[str]) -> None:
    """Refuse config files of different runs that disagree on a setting of the run.

    A file that states `downstream` describes a run, such as SUPERB's settings of one task. A run
    has one optimizer: of two such files, one would silently lose.

    Args:
        files: contents and paths.
        known: the sections of a config that do not belong to a task.

    Raises:
        UserError: names the files, a setting and both values.
    """
    stated = [(task_specs(values, str(path)), values, path) for values, path in files]
    for (tasks, values, path), (others, other, second) in combinations(stated, 2):
        if not tasks or not others or set(tasks) == set(others):
            continue
        first_values = dict(_leaves(values, known))
        for key, value in _leaves(other, known):
            if key in first_values and first_values[key] != value:
                raise UserError(
                    f"The files describe different runs: {path} sets {key} to "
                    f"{first_values[key]!r} for {','.join(tasks)}, {second} to {value!r} for "
                    f"{','.join(others)}.",
                    where=f"-c {second}",
                    fix="A run has one encoder and one optimizer: give one of the files, or train "
                    "the tasks one by one.",
                    code="conflicting-options",
                )


def remarks_on_reach(
    files: Sequence[tuple[Config, str | Path]], tasks: Sequence[str], known: set[str]
) -> list[str]:
    """A remark for each file whose settings of the run apply to tasks that it does not name.

    Args:
        files: contents and paths.
        tasks: of the run.
        known: the sections of a config that do not belong to a task.
    """
    remarks = []
    for values, path in files:
        own = task_specs(values, str(path))
        others = [task for task in tasks if own and task not in own]
        keys = [key for key, _ in _leaves(values, known)]
        if others and keys:
            shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            remarks.append(
                f"{path} is written for {','.join(own)}; its {shown} also apply to "
                f"{','.join(others)}."
            )
    return remarks


def refuse_contradictions(layers: Sequence[Layer]) -> None:
    """Refuse two values of one setting on the command line.

    Args:
        layers: of flags and of `-o`, one for each value.

    Raises:
        UserError: names both.
    """
    found: dict[str, tuple[str, str]] = {}
    for layer, origin in layers:
        for key, value in _leaves(layer, layer.keys()):
            if value is None:
                continue
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            before, source = found.setdefault(key, (text, origin))
            if before != text:
                raise UserError(
                    f"{key} is {before} in {source} and {text} in {origin}.",
                    where=key,
                    fix="Give one of the values.",
                    code="conflicting-options",
                )


def refuse_frozen_and_unfrozen(config: Config) -> None:
    """Refuse an encoder that is frozen for the whole run and for its first steps.

    Raises:
        UserError: both are set.
    """
    if config["upstream"]["freeze"] and config["runner"]["unfreeze_after"] is not None:
        raise UserError(
            "upstream.freeze freezes the encoder for the whole run, runner.unfreeze_after for its "
            "first steps.",
            where="upstream.freeze and runner.unfreeze_after",
            fix="Give one of them; -f sets upstream.freeze to false.",
            code="conflicting-options",
        )


def remarks_on_ignored(config: Config) -> Iterator[str]:
    """A remark for each setting that another one leaves without an effect.

    Not errors: a file, or the `-o` of a study, may serve several runs.

    Args:
        config: merged.
    """
    for key, reason in _ignored(config):
        yield f"{key} has no effect: {reason}."


def _ignored(config: Config) -> Iterator[tuple[str, str]]:
    upstream, runner = config["upstream"], config["runner"]
    groups = config["optimizer"].get("groups") or {}
    frozen = "upstream.freeze (--freeze_upstream) freezes the whole encoder"
    if upstream["freeze"] and upstream["freeze_layers"] is not None:
        yield "upstream.freeze_layers", frozen
    if upstream["freeze"] and ENCODER in groups:
        yield f"optimizer.groups.{ENCODER}", frozen
    for part in groups:
        if part not in PARTS and part not in config["downstream"]:
            yield f"optimizer.groups.{part}", f"the run does not have the task {part}"
    after, total = runner["unfreeze_after"], runner["total_steps"]
    if after is not None and after >= total:
        yield "runner.unfreeze_after", f"the run has {total} steps, and the encoder stays frozen"


def check_sampling(config: Config) -> None:
    """Check the rule for the tasks of a step.

    Raises:
        UserError: it is wrong for these tasks, or leaves no pairs of tasks to compare.
    """
    rule, tasks = config["runner"]["sampling"], config["downstream"]
    if not tasks:
        return
    most = max(map(len, tasks_of_steps(rule, tasks)))
    if config["runner"]["log_conflicts"] and most == 1 < len(tasks):
        raise UserError(
            f"With runner.sampling {rule!r} a step has one task: there are no gradients to "
            "compare.",
            where="runner.log_conflicts and runner.sampling",
            fix="Leave out --log_conflicts, or take --sampling all.",
            code="conflicting-options",
        )


def _leaves(values: Mapping[str, Any], sections: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of some sections with their values."""
    for key, value in values.items():
        if not path and key not in sections:
            continue
        full = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, sections, full)
        else:
            yield full, value
