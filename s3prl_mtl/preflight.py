"""What must hold before a run takes its first step; every problem is found at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.config import Config
from s3prl_mtl.errors import UserError
from s3prl_mtl.expert import TaskExpert
from s3prl_mtl.task import Task


def check_splits(config: Config, tasks: Mapping[str, Task]) -> None:
    """Scan every split that a run will need.

    Raises:
        UserError: one report of what is wrong with any of them.
    """
    check_corpora(config, {name: type(task.expert) for name, task in tasks.items()})
    mistakes = []
    for name, task in tasks.items():
        for split in dict.fromkeys([task.train_split, *task.dev_splits, *task.test_splits]):
            if isinstance(task.expert, TaskExpert):
                try:
                    task.expert.prepare(split)
                except UserError as mistake:
                    mistakes.append(f"{name} {split}: {mistake}")
    raise_together(mistakes)


def check_corpora(config: Config, classes: Mapping[str, type]) -> None:
    """Report in one error everything that is wrong with the data folders of the tasks."""
    found = []
    for name, expert_class in classes.items():
        check = getattr(expert_class, "problems", None)
        if check is not None:
            lines = check(config[name]["downstream_expert"])
            # Our corpora name their task; a stranger's need not.
            found += [line if line.startswith(name) else f"{name}: {line}" for line in lines]
    if found:
        raise UserError("The data of some tasks is not there.\n  " + "\n  ".join(found))


def check_plain(task: str, expert: Any) -> None:
    """Refuse, before training, what a checkpoint could hold but never give back."""
    for attribute in ("labels", "decision"):
        try:
            json.dumps(getattr(expert, attribute, None))
        except (TypeError, ValueError) as cause:
            raise UserError(
                f"The expert of {task} keeps in `{attribute}` what is not plain JSON: {cause}.",
                where=f"{type(expert).__module__}.{type(expert).__qualname__}",
                fix="Use lists, dictionaries, texts and Python's own numbers.",
            ) from cause


def raise_together(mistakes: Sequence[str]) -> None:
    """Raise what is wrong with several tasks as one report; nothing if nothing is.

    Raises:
        UserError: all of it.
    """
    if len(mistakes) == 1:
        raise UserError(mistakes[0])
    if mistakes:
        raise UserError("Several tasks cannot be run.\n  " + "\n  ".join(mistakes))
