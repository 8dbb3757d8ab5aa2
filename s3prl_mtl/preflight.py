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
    classes = {name: type(task.expert) for name, task in tasks.items()}
    problems = corpus_problems(config, classes)
    mistakes = [line for lines in problems.values() for line in lines]
    for name, task in tasks.items():
        if name not in problems:
            mistakes += split_mistakes(task)
    raise_together(mistakes)


def corpus_problems(config: Config, classes: Mapping[str, type]) -> dict[str, list[str]]:
    """What is wrong with the data folders, for each task where anything is."""
    problems = {}
    for name, expert_class in classes.items():
        check = getattr(expert_class, "problems", None)
        lines = check(config[name]["downstream_expert"]) if check is not None else []
        if lines:
            # Our corpora name their task; a stranger's need not.
            problems[name] = [
                line if line.startswith(f"{name}:") else f"{name}: {line}" for line in lines
            ]
    return problems


def split_mistakes(task: Task) -> list[str]:
    """What is wrong with the splits of a task, as far as a scan shows it."""
    mistakes = []
    if isinstance(task.expert, TaskExpert):
        for split in dict.fromkeys([task.train_split, *task.dev_splits, *task.test_splits]):
            try:
                count = task.expert.utterances(split)
            except UserError as mistake:
                mistakes.append(f"{task.name} {split}: {mistake}")
                continue
            if split == task.train_split and count < task.stream.num_shares:
                mistakes.append(
                    f"{task.name} {split}: {count} utterances cannot be shared by "
                    f"{task.stream.num_shares} processes."
                )
    return mistakes


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
