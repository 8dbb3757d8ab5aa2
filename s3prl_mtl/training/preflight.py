"""Checks before the first step of a run; all problems are reported together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from s3prl_mtl.config import RunConfig
from s3prl_mtl.data.corpus_report import CorpusReport, CorpusSizes
from s3prl_mtl.data.epoch_reader import EpochReader
from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.adapter import S3prlTask
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.training.task import Task

T = TypeVar("T")


def check_splits(config: RunConfig, tasks: Mapping[str, Task]) -> dict[str, CorpusSizes]:
    """Scan every split that a run needs, and check its corpus.

    A corpus is refused for its layout (`Corpus.problems`), for utterances that are repeated or
    unusable (:mod:`s3prl_mtl.data.manifest_cache`), for splits that contradict each other
    (:mod:`s3prl_mtl.data.corpus_report`), or by findings of the corpus and of the task.
    Splits of s3prl's experts cannot be scanned: only their loaders are created.

    Returns:
        the sizes of the corpora of this package, by task.

    Raises:
        UserError: one report of all problems.
    """
    classes = {name: type(task.expert) for name, task in tasks.items()}
    problems = corpus_problems(config, classes)
    mistakes = [mistake for found in problems.values() for mistake in found]
    sizes = {}
    for name, task in tasks.items():
        if name not in problems:
            found = split_mistakes(task)
            mistakes += found
            report = None if found else corpus_report(task)
            if report is not None:
                report.log()
                mistakes += report.mistakes()
                sizes[name] = report.sizes
            mistakes += loader_mistakes(config, task)
    raise_together(mistakes)
    return sizes


def corpus_problems(config: RunConfig, classes: Mapping[str, type]) -> dict[str, list[UserError]]:
    """Problems with the data folders, by task; tasks without problems are omitted.

    One problem, of the first of these tasks, if the reason of all is that the folder of `--data`
    does not exist.
    """
    problems: dict[str, list[UserError]] = {}
    for name, expert_class in classes.items():
        check = getattr(expert_class, "problems", None)
        lines = check(config.tasks[name].downstream_expert) if check is not None else []
        if lines:
            # Corpora of other packages may not begin with the task.
            problems[name] = [
                UserError(
                    line if line.startswith(f"{name}:") else f"{name}: {line}",
                    where=f"{name}.downstream_expert.datarc",
                    code="corpus-incomplete",
                )
                for line in lines
            ]
    root = config.data
    if problems and root is not None and not root.is_dir():
        lines = [mistake.what for found in problems.values() for mistake in found]
        if all(str(root) in line for line in lines):
            absent = UserError(
                f"The data folder {root} "
                + ("is not a folder." if root.exists() else "does not exist."),
                where="--data, or the environment variable SUPERB_DATA",
                fix="Name the folder that holds the corpora.",
                code="file-missing",
            )
            first = next(iter(problems))
            return {name: [absent] if name == first else [] for name in problems}
    return problems


def split_mistakes(task: Task) -> list[UserError]:
    """Problems found by scanning the splits of a task."""
    mistakes = []
    if isinstance(task.expert, TaskExpert):
        for split in dict.fromkeys([task.train_split, *task.dev_splits, *task.test_splits]):
            try:
                count = task.expert.utterances(split)
            except UserError as mistake:
                mistakes.append(_of(f"{task.name} {split}", mistake))
                continue
            if split == task.train_split and count < task.stream.num_shares:
                mistakes.append(
                    UserError(
                        f"{task.name} {split}: {count} utterances are too few for "
                        f"{task.stream.num_shares} processes.",
                        where=f"split {split!r} of {task.name}",
                        code="corpus-empty",
                    )
                )
    return mistakes


def corpus_report(task: Task) -> CorpusReport | None:
    """The report of a task's corpus; None if it is not one of this package."""
    if not isinstance(task.expert, TaskExpert):
        return None
    return task.expert.report([task.train_split, *task.dev_splits, *task.test_splits])


def loader_mistakes(config: RunConfig, task: Task) -> list[UserError]:
    """Errors of an expert of s3prl when it creates the loaders of the evaluated splits."""
    if not isinstance(task.expert, S3prlTask):
        return []
    runner = config.runner
    tested = task.test_splits if runner.test_first or runner.test_last else []
    mistakes = []
    for split in dict.fromkeys([*task.dev_splits, *tested]):
        try:
            # The reader isolates the random state.
            EpochReader(task.name, task.expert, split, seed=task.stream.seed, training=False)
        except UserError as mistake:
            mistakes.append(_of(task.name, mistake))
    return mistakes


def _of(place: str, mistake: UserError) -> UserError:
    error = UserError(
        f"{place}: {mistake.what}",
        where=mistake.where or place,
        fix=mistake.fix,
        code=mistake.code,
    )
    error.__cause__ = mistake
    return error


def check_plain(task: str, expert: Any) -> None:
    """Refuse attributes of an expert that a checkpoint could not restore."""
    for attribute in ("labels", "decision"):
        try:
            json.dumps(getattr(expert, attribute, None))
        except (TypeError, ValueError) as cause:
            raise UserError(
                f"The attribute `{attribute}` of the expert of {task} is not plain JSON: {cause}.",
                where=f"{type(expert).__module__}.{type(expert).__qualname__}",
                fix="Use lists, dictionaries, strings and numbers of Python.",
                code="expert-invalid",
            ) from cause


def choose_root(
    roots: Sequence[str | Path | None],
    use: Callable[[str | Path | None], tuple[T, list[UserError]]],
) -> T:
    """Use the first data folder that has the corpus of a task.

    Args:
        roots: as after `--data`; empty for the folder that the settings or $SUPERB_DATA name.
        use: takes a folder; returns the result, and the problems of the corpus there.

    Returns:
        The result for this folder.

    Raises:
        UserError: no folder has it; with the problems of all.
    """
    mistakes: list[UserError] = []
    for root in roots or [None]:
        result, problems = use(root)
        if not problems:
            return result
        mistakes += problems
    raise together(mistakes)


def raise_together(mistakes: Sequence[UserError]) -> None:
    """Raise several mistakes as one report; return if there are none.

    Raises:
        UserError: the mistake, or all of them together.
    """
    if mistakes:
        raise together(mistakes)


def together(mistakes: Sequence[UserError]) -> UserError:
    """One report of at least one mistake; one of several tasks is in it once."""
    mistakes = list({(str(m), m.code): m for m in mistakes}.values())
    if len(mistakes) == 1:
        return mistakes[0]
    lines = "\n  ".join(str(mistake) for mistake in mistakes)
    # Without a place of its own: every line has one.
    return UserError(f"{len(mistakes)} problems were found.\n  {lines}", code="several")
