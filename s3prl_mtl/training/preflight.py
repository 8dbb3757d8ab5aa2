"""What must hold before a run takes its first step; every problem is found at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.config import Config
from s3prl_mtl.data.epoch_reader import EpochReader
from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.adapter import S3prlTask
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.training.task import Task


def check_splits(config: Config, tasks: Mapping[str, Task]) -> None:
    """Scan every split that a run will need.

    Of an expert of s3prl nothing can be scanned: it is asked for the loader of each split that is
    evaluated, from which nothing is read.

    Raises:
        UserError: one report of what is wrong with any of them, from the first error of an expert.
    """
    classes = {name: type(task.expert) for name, task in tasks.items()}
    problems = corpus_problems(config, classes)
    mistakes = [line for lines in problems.values() for line in lines]
    causes: list[UserError] = []
    for name, task in tasks.items():
        if name not in problems:
            mistakes += split_mistakes(task)
            causes += (found := loader_mistakes(config, task))
            mistakes += [f"{name}: {mistake}" for mistake in found]
    raise_together(mistakes, causes[0] if causes else None)


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


def loader_mistakes(config: Config, task: Task) -> list[UserError]:
    """What an expert of s3prl says of the splits that a run evaluates, asked for their loaders."""
    if not isinstance(task.expert, S3prlTask):
        return []
    runner = config["runner"]
    tested = task.test_splits if runner["test_first"] or runner["test_last"] else []
    mistakes = []
    for split in dict.fromkeys([*task.dev_splits, *tested]):
        try:
            # It leaves the random generators alone, as when the split is evaluated.
            EpochReader(task.name, task.expert, split, seed=task.stream.seed, training=False)
        except UserError as mistake:
            mistakes.append(mistake)
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


def raise_together(mistakes: Sequence[str], cause: Exception | None = None) -> None:
    """Raise what is wrong with several tasks as one report; nothing if nothing is.

    Raises:
        UserError: all of it, from the cause.
    """
    if len(mistakes) == 1:
        raise UserError(mistakes[0]) from cause
    if mistakes:
        raise UserError("Several tasks cannot be run.\n  " + "\n  ".join(mistakes)) from cause
