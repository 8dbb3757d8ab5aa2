"""Lock the directory of a run, check that all machines share it, log into it, mark its end."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from s3prl_mtl.data.corpus_report import CorpusSizes
from s3prl_mtl.distributed.world import RankLost, World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.tracking.console import log_to_file

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
"""File in the folder of a run that was trained to its last step and then evaluated."""

CORPORA = "corpora.json"
"""File in the folder of a run with the sizes of the corpora of its tasks at its last start."""


@contextmanager
def working_in(folder: Path, world: World, lock: bool) -> Iterator[None]:
    """Create and lock the directory of a run, and log into it.

    The first rank logs to `log.txt`, the others to `log-rank<number>.txt`.

    Raises:
        UserError: another process trains there, or not all machines share the directory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guard = FileLock(folder / ".lock", timeout=0) if lock and world.is_lead else None
    world.run_on_all_ranks(lambda: _enter(guard, folder))
    if lock:
        world.run_on_all_ranks(lambda: _check_shared(folder))
    name = "log.txt" if world.is_lead else f"log-rank{world.rank}.txt"
    try:
        with log_to_file(folder / name) as handler:
            try:
                yield
            except Exception as error:
                # The command line shows the error on a terminal; every rank has a log.
                known = isinstance(error, UserError | RankLost)
                code = f" [{error.code}]" if isinstance(error, UserError) else ""
                record = logger.makeRecord(
                    *(logger.name, logging.ERROR, __file__, 0, "%s%s", (error, code)),
                    None if known else (type(error), error, error.__traceback__),
                )
                handler.handle(record)
                raise
    finally:
        if guard is not None:
            guard.release()


def _enter(guard: BaseFileLock | None, folder: Path) -> None:
    try:
        if guard is not None:
            guard.acquire()
    except Timeout:
        raise UserError(
            f"Another process trains in {folder}.",
            where="-n or -p",
            fix="Choose another name.",
            code="folder-in-use",
        ) from None


def _check_shared(folder: Path) -> None:
    if not (folder / ".lock").exists():
        raise UserError(
            f"{folder} is not shared: files that rank 0 writes there do not appear on this "
            "machine.",
            where="-n or -p",
            fix="Choose a folder on a file system that all machines share.",
            code="folder-not-shared",
        )


def write_corpora(folder: Path, corpora: Mapping[str, CorpusSizes]) -> None:
    """Write the sizes of the corpora of a run, by task."""
    plain = {task: asdict(sizes) for task, sizes in corpora.items()}
    replace_text(folder / CORPORA, json.dumps(plain, indent=2) + "\n")


@dataclass(frozen=True)
class Finished:
    """The end of a run.

    Attributes:
        step: the last one.
        id: different each time that a run is finished: other runs record what they started from.
    """

    step: int
    id: str


def mark_finished(folder: Path, step: int) -> None:
    """Mark the run in a folder as finished."""
    content = {"step": step, "id": uuid.uuid4().hex}
    replace_text(folder / FINISHED, json.dumps(content) + "\n")


def unmark_finished(folder: Path) -> None:
    """Mark the run in a folder as not finished."""
    (folder / FINISHED).unlink(missing_ok=True)


def read_finished(folder: Path) -> Finished | None:
    """The end of the run in a folder; None if it is not finished."""
    try:
        return Finished(**json.loads((folder / FINISHED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
