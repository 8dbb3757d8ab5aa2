"""Corpora: the mini corpus, own tables, checks, archives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s3prl_mtl.api.calls import Override, PathLike, callable_from_python, listed
from s3prl_mtl.api.run_inputs import (
    MANIFESTS,
    Manifest,
    manifest_settings,
    require_tasks_of,
    split_override,
)
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.console import progress_is_shown, showing_progress

if TYPE_CHECKING:
    from s3prl_mtl.config import RunConfig
    from s3prl_mtl.data.corpus_report import CorpusReport

Show = Callable[[str, int, int | None], None]
"""Show that so many of so many (None: unknown) are done of something with a name."""

# Of the features; the smallest that every head takes.
_WIDTH = 8
_FRAME_SAMPLES = 320


@contextmanager
def progress_bars() -> Iterator[Show]:
    """Bars on standard error, a line for each name, if progress is shown."""
    from s3prl_mtl.tracking.progress import MessageBars

    with MessageBars(shown=progress_is_shown()) as shown:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = shown.add_task(name, total=total)
            shown.update(bars[name], completed=done, total=total)

        yield show


@callable_from_python
def make_corpus(
    directory: PathLike,
    *,
    size: Literal["tiny", "mini"] = "mini",
    seed: int = 0,
    progress: bool | None = False,
) -> Path:
    """Synthesise a small corpus in the folder layouts of the nine tasks: `make-corpus`.

    Worker processes import the caller's main module: a script calls this under
    ``if __name__ == "__main__":``. A corpus of the same size and seed is kept.

    Args:
        directory: the folder, for `data`.
        size: `tiny` (seconds) or `mini` (minutes).
        seed: changes speakers and sentences.
        progress: show a progress bar; None on a terminal only.

    Returns:
        the folder.

    Raises:
        UserError: espeak-ng is missing, or the folder contains something else.
    """
    from s3prl_mtl.data import mini_corpus

    folder = Path(directory)
    with showing_progress(progress), progress_bars() as show:
        mini_corpus.make_corpus(
            folder,
            size=size,
            seed=seed,
            progress=lambda done, total: show("synthesising", done, total),
        )
    return folder


@dataclass(frozen=True)
class Shards:
    """A copy of corpora with the audio in archives.

    Attributes:
        folder: for `data`.
        archives_folder: the folder of the archives in it.
        files: the number of audio files.
        archives: the number of archives.
    """

    folder: Path
    archives_folder: Path
    files: int
    archives: int


@callable_from_python
def shard(
    data: PathLike,
    output: PathLike,
    *,
    shard_size: int = 1000,
    url: str | None = None,
    progress: bool | None = False,
) -> Shards:
    """Copy corpora, their audio into tar archives (lhotse Shar): the command `shard`.

    Args:
        data: the folder of corpora.
        output: a new folder.
        shard_size: files of an archive.
        url: where the archives will be read, such as `s3://bucket/speech`; by default `output`.
        progress: show a progress bar; None on a terminal only.

    Returns:
        the copy.

    Raises:
        UserError: `data` is not a folder, or `output` is in it or not empty.
    """
    from s3prl_mtl.data.archives import FOLDER
    from s3prl_mtl.data.shards import write_archives

    folder = Path(output)
    with showing_progress(progress), progress_bars() as show:
        files, archives = write_archives(
            Path(data),
            folder,
            shard_size=shard_size,
            url=url,
            progress=lambda done: show("copying", done, None),
        )
    return Shards(folder, folder / FOLDER, files, archives)


@dataclass(frozen=True)
class WrittenTables:
    """Tables of a task.

    Attributes:
        manifest: the tables by task and split, as `train` takes them.
        rows: the number of rows of each split.
        settings: further files by the dotted key of the setting that names them, for `override`.
    """

    manifest: Mapping[str, Mapping[str, Path]]
    rows: Mapping[str, int]
    settings: Mapping[str, Path]


@callable_from_python
def manifest(
    name: str,
    *,
    out: PathLike,
    data: PathLike | Sequence[PathLike] | None = None,
    config: PathLike | Sequence[PathLike] = (),
) -> WrittenTables:
    """Write the corpus of a task as tables, an example of own data: the command `manifest`.

    Args:
        name: an installed task.
        out: folder of the tables.
        data: folder of the corpora, or several, of which the first one with the corpus counts.
        config: YAML files or packaged settings.

    Returns:
        the tables.

    Raises:
        UserError: the corpus is missing, the task takes no tables, or a table exists.
    """
    from s3prl_mtl.config import build_config, parse_tasks, resolve
    from s3prl_mtl.data.tables import write_table
    from s3prl_mtl.fileio.atomic import replace_text
    from s3prl_mtl.fileio.paths import require_absent
    from s3prl_mtl.training.preflight import choose_root, corpus_problems

    task = parse_tasks(name, flag="TASK")[0]
    folder = Path(out)

    def use(root: str | Path | None) -> tuple[tuple[type, dict[str, object]], list[UserError]]:
        flags = {"downstream": [task], **({} if root is None else {"data": root})}
        resolved = resolve(build_config(listed(config), flags))
        block = resolved.tasks[task]
        expert = load_task(task, block.package, folder=block.folder)
        datarc = block.downstream_expert.get("datarc") or {}
        return (expert, datarc), corpus_problems(resolved, {task: expert}).get(task, [])

    expert, datarc = choose_root(_roots(data), use)
    table_type = getattr(expert, "table_type", None)
    if table_type is None:
        raise UserError(
            f"The task {task} takes no tables.",
            where=f"TASK {task}",
            fix="Set `table_type` of its expert (docs/own-data.md).",
            code="not-supported",
        )
    corpus = expert.make_corpus(datarc)  # type: ignore[attr-defined]
    for split in corpus.splits:
        fix = "Give another folder, or remove it first."
        require_absent(folder / f"{split}.csv", f"--out {folder}", fix)
    folder.mkdir(parents=True, exist_ok=True)
    tables, counts, settings = {}, {}, {}
    for split in corpus.splits:
        tables[split] = folder / f"{split}.csv"
        rows = table_type.rows_of(corpus, split)
        for row in rows:
            row["path"] = os.path.relpath(row["path"], folder)
        write_table(tables[split], rows)
        counts[split] = len(rows)
        for setting, text in table_type.side_files(corpus, split).items():
            file = folder / f"{setting}-{split}.txt"
            replace_text(file, text)
            settings[f"{task}.downstream_expert.datarc.{setting}.{split}"] = file
    return WrittenTables({task: tables}, counts, settings)


def _roots(data: PathLike | Sequence[PathLike] | None) -> list[str]:
    return [os.fspath(folder) for folder in listed(data)]


@callable_from_python
def check_corpus(
    name: str,
    *,
    data: PathLike | Sequence[PathLike] | None = None,
    config: PathLike | Sequence[PathLike] = (),
    override: Override | None = None,
    manifest: Manifest | None = None,
    cache_dir: PathLike | None = None,
    rescan: bool = False,
) -> CorpusReport:
    """Check the splits that a run of a task uses: the command `check-corpus`.

    Args:
        name: an installed task.
        data: folder of the corpora, or several, of which the first one with the corpus counts.
        config: YAML files or packaged settings.
        override: settings of the task by dotted key, or the text of `-o`.
        manifest: tables of own data, as of `train`.
        cache_dir: folder of scanned corpora.
        rescan: list the corpus even if its folders have not changed.

    Returns:
        counts of each split and findings; `mistakes()` are those that training would refuse.

    Raises:
        UserError: the corpus is missing or cannot be read, or the task has none to check.
    """
    from s3prl_mtl.config import build_config, parse_tasks, resolve
    from s3prl_mtl.data.corpus_cache import forget_listings
    from s3prl_mtl.tasks.base import TaskExpert
    from s3prl_mtl.training.build import build_expert
    from s3prl_mtl.training.preflight import choose_root, corpus_problems
    from s3prl_mtl.training.task import Task

    names = parse_tasks(name, flag="TASK")
    if len(names) > 1:
        raise UserError(
            f"{name!r} names {len(names)} tasks.",
            where="TASK",
            fix="Check one task at a time.",
            code="invalid-value",
        )
    overrides, changes = split_override(override)

    def use(root: str | Path | None) -> tuple[tuple[RunConfig, type], list[UserError]]:
        flags = {"downstream": names, "data": root, "cache_dir": cache_dir and os.fspath(cache_dir)}
        given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
        tables = manifest_settings(manifest)
        given |= tables | changes
        unresolved = build_config(listed(config), given, overrides)
        require_tasks_of(tables, MANIFESTS, unresolved, "--manifest")
        resolved = resolve(unresolved)
        ((task, block),) = resolved.tasks.items()
        expert_class = load_task(task, block.package, folder=block.folder)
        problems = corpus_problems(resolved, {task: expert_class}).get(task, [])
        return (resolved, expert_class), problems

    resolved, expert_class = choose_root(_roots(data), use)
    if rescan:
        forget_listings(resolved.cache_dir)
    ((task, block),) = resolved.tasks.items()
    with tempfile.TemporaryDirectory() as folder:
        expert = build_expert(
            expert_class,
            resolved,
            task,
            Path(folder),
            upstream_dim=_WIDTH,
            upstream_rate=_FRAME_SAMPLES,
        )
        report = None
        if isinstance(expert, TaskExpert):
            built = Task.from_settings(task, expert, block)
            report = expert.report([built.train_split, *built.dev_splits, *built.test_splits])
    if report is None:
        raise UserError(
            f"The task {task} reads its data itself, so its corpus cannot be checked.",
            where="TASK",
            fix="Derive the expert from `s3prl_mtl.TaskExpert` and declare its `corpus_type`.",
            code="not-supported",
        )
    return report
