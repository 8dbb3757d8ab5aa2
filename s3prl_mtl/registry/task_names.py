"""Which task a word of the user means, and under which name a run keeps it.

A task is the same as another if it has the same plain name and is of the same package. A run keeps
a task under the name that it was begun with, whatever packages are installed later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    TASK_GROUP,
    NoSuchPackage,
    find_plugin,
    resolve_task,
    same_package,
    split_name,
    tasks_named,
)
from s3prl_mtl.s3prl_compat.task_spec import canonical_spec, is_s3prl_task, task_name


class TaskPackageMissing(UserError):
    """The package of a task of the run is not installed, or has the task no longer.

    Args:
        task: its plain name.
        package: whose it is.
        advice: what would be right.
    """

    def __init__(self, task: str, package: str, advice: str) -> None:
        others = ", ".join(map(str, tasks_named(task)))
        another = f" Another one of that name is of {others}: it is not taken for it."
        super().__init__(
            f"The task {task!r} of the run is that of package {package}, which is not installed "
            f"or no longer has it.{another if others else ''}",
            where=f"{task}.package in the config of the run",
            fix=advice,
        )
        self.task = task
        self.package = package


BUILT_IN_TASKS = ("asr", "pr", "sf", "ks", "ic", "sid", "er", "sv", "sd")

Packages = Mapping[str, str | None]
"""The package of each task of a run by the name that the run has for it.

None where that is not known: experts of s3prl, and what was saved before packages were.
"""
Layers = Sequence[tuple[dict[str, Any], str]]
"""The layers of a config, each with what it is from."""

_UNRECORDED = "the checkpoint, which does not say of which package it is"


def split_specs(text: str, flag: str = "-d") -> list[str]:
    """The words of a flag, separated by commas; `all` is every task of this distribution.

    Raises:
        UserError: there is none.
    """
    words: list[str] = []
    ours = [f"{OUR_PACKAGE}:{task}" for task in BUILT_IN_TASKS]
    for word in filter(None, map(str.strip, text.split(","))):
        words += ours if word == "all" else [word]
    if not words:
        raise UserError(
            "No task is named.", where=flag, fix=f"For example: {flag} asr,ks or {flag} all."
        )
    return list(dict.fromkeys(words))


def task_packages(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    """The packages of tasks, as their blocks in a config say.

    Args:
        config: a run's own, or that of one of its checkpoints.
        names: of the tasks in it.
    """
    blocks = {name: config.get(name) for name in names}
    return {
        name: (block.get("package") if isinstance(block, Mapping) else None) or split_name(name)[0]
        for name, block in blocks.items()
    }


def find_in_run(word: str, held: Packages) -> str | None:
    """The name under which a run holds the task that a word means; None if it does not hold it.

    Args:
        word: `ks`, `package:ks`, another word such as `asv`, or `s3prl:...`.
        held: the tasks of the run. One whose package is not known is what any word of its plain
            name means.

    Raises:
        UserError: the word means several of them.
    """
    if is_s3prl_task(word):
        name = word if word in held else task_name(word)
        return name if name in held else None
    if word in held:
        return word
    package, plain = split_name(word)
    found = _matching(plain, package, held)
    if not found:
        for plugin in tasks_named(plain):
            if package is None or same_package(package, plugin.package):
                found += _behind(f"{plugin.package}:{plain}", held)
    return _only(found, word)


def require_in_run(word: str, held: Packages, where: str) -> str:
    """The name under which a run holds the task that a word means.

    Args:
        word, held: as in :func:`find_in_run`.
        where: what gave the word, for errors.

    Raises:
        UserError: the run does not hold it, or the word means several of its tasks.
    """
    name = find_in_run(word, held)
    if name is None:
        rivals = same_name_tasks(word, held)
        raise UserError(
            f"The run has no task {word!r}.",
            where=where,
            fix=f"It holds: {', '.join(rivals)}." if rivals else nearest(word, list(held)),
        )
    return name


def find_same_task(name: str, package: str | None, held: Packages) -> str | None:
    """The name under which another run holds the task that this run has under `name`, or None.

    Args:
        name: of the task in this run.
        package: the one that it is of.
        held: the tasks of the other run.
    """
    if is_s3prl_task(name):
        return name if name in held else None
    found = _matching(split_name(name)[1], package, held)
    # What is known to be of the package goes before what may be.
    found.sort(key=lambda other: (held[other] is None, other != name))
    return found[0] if found else None


def same_name_tasks(name: str, held: Packages) -> list[str]:
    """What a run holds under the plain name of a task, with the packages, for messages."""
    plain = split_name(name)[1]
    return [
        f"{other} of package {package}"
        for other, package in held.items()
        if split_name(other)[1] == plain and package is not None
    ]


def choose_tasks(
    words: Sequence[str], held: Packages, stated: Mapping[str, str]
) -> dict[str, str | None]:
    """The names under which a run has the tasks that the words mean, and their packages.

    Args:
        words: as after `-d`.
        held: the tasks of the run that goes on; empty for a new one.
        stated: the packages that blocks of the config state, by the blocks' names.

    Raises:
        UserError: a word means no task, or several; or the package that is asked for does not have
            it, or is not the one of the run.
    """
    chosen: dict[str, str | None] = {}
    for word in words:
        if is_s3prl_task(word):
            chosen[canonical_spec(word)] = None
            continue
        name = find_in_run(word, held)
        if name is None and word in stated:
            name = word
        if name is not None:
            package = _package_of(name, word, held, stated)
        else:
            plain, package = resolve_task(word)
            name = plain if _is_plain_for(plain, package, held, stated) else f"{package}:{plain}"
        chosen.setdefault(name, package)
    return chosen


def installed_package(name: str, package: str | None) -> str:
    """The package whose plugin a checkpoint's task is built with, as that package spells itself.

    Args:
        name: of the task in the checkpoint.
        package: that was recorded, or that the user says; None if neither.

    Raises:
        TaskPackageMissing: it is not installed, or has the task no longer.
        UserError: none is known, and several have the task.
    """
    try:
        return find_plugin(TASK_GROUP, name, "task", package, where=_UNRECORDED).package
    except NoSuchPackage as cause:
        plain = split_name(name)[1]
        advice = f"Install {package} again, or leave the task out."
        raise TaskPackageMissing(plain, str(package), advice) from cause


def stated_packages(layers: Layers) -> dict[str, str]:
    """The packages that blocks of tasks state, by the blocks' names; the later layer counts.

    Raises:
        UserError: one is no text.
    """
    stated: dict[str, str] = {}
    for layer, origin in layers:
        for key, block in layer.items():
            package = block.get("package") if isinstance(block, Mapping) else None
            if package is None or is_s3prl_task(key):
                continue
            if not isinstance(package, str):
                raise UserError(
                    f"{key}.package is the name of a package, not {package!r}.", where=origin
                )
            stated[key] = package
    return stated


def rename_blocks(layers: Layers, chosen: Packages) -> list[tuple[dict[str, Any], str]]:
    """The layers, with the blocks of the chosen tasks under the names that the run has for them.

    A block `ks` is that of `package:ks`, and the other way round, unless its `package` is another.

    Raises:
        UserError: a block could be that of several of the tasks.
    """
    renamed = []
    for layer, origin in layers:
        names = {}
        for key, block in layer.items():
            names[key] = key
            if key in chosen or is_s3prl_task(key) or not isinstance(block, Mapping):
                continue
            package, plain = split_name(key)
            owners = _matching(plain, block.get("package") or package, chosen)
            if len(owners) > 1:
                raise UserError(
                    f"The block {key!r} could be that of {' or '.join(owners)}.",
                    where=origin,
                    fix="Give it one of these names, or the `package` that it is for.",
                )
            if owners and owners[0] not in layer:
                names[key] = owners[0]
        renamed.append(({names[key]: value for key, value in layer.items()}, origin))
    return renamed


def _package_of(name: str, word: str, held: Packages, stated: Mapping[str, str]) -> str:
    """The package of a task that the run or a block of the config knows by name."""
    was, now = held.get(name), stated.get(name)
    spoken = split_name(word)[0] or split_name(name)[0]
    for before, after in ((was, now), (now, spoken)):
        if before is not None and after is not None and not same_package(before, after):
            raise UserError(
                f"The task {name!r} is that of package {before}, and cannot be that of {after}.",
                where=f"{name}.package in the config",
                fix=f"Leave it as it is, or name the other one: -d {after}:{split_name(name)[1]}.",
            )
    package = was or now or spoken
    if name in held:
        return installed_package(name, package)
    where = f"{name}.package in the config"
    return find_plugin(TASK_GROUP, name, "task", package, where).package


def _is_plain_for(plain: str, package: str, held: Packages, stated: Mapping[str, str]) -> bool:
    """Whether the plain name, in a run, is that of the task of a package.

    The run or a block of the config says whose it is; else that of the only package that has it.
    """
    known = stated.get(plain, held.get(plain))
    if known is None:
        return plain not in held and len(tasks_named(plain)) == 1
    return same_package(known, package)


def _matching(plain: str, package: str | None, held: Packages) -> list[str]:
    """The tasks of a plain name that are, or may be, of a package."""
    return [
        name
        for name, own in held.items()
        if split_name(name)[1] == plain
        and not is_s3prl_task(name)
        and (package is None or own is None or same_package(own, package))
    ]


def _behind(word: str, held: Packages) -> list[str]:
    """The tasks that an installed plugin is another word for."""
    try:
        plain, package = resolve_task(word)
    except UserError:
        return []  # broken: it is no word for anything
    return _matching(plain, package, held)


def _only(found: Sequence[str], word: str) -> str | None:
    distinct = list(dict.fromkeys(found))
    if len(distinct) > 1:
        raise UserError(
            f"{word!r} could be {' or '.join(repr(name) for name in distinct)} of the run.",
            fix="Name one of them.",
        )
    return distinct[0] if distinct else None
