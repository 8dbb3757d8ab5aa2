"""A file of predictions that grows line by line, and is continued after an interruption."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import drop_incomplete_line, replace_text
from s3prl_mtl.fileio.paths import require_absent

PART = ".part"
"""Ends the name of the file while it grows."""
SETTINGS = ".part.json"
"""Ends the name of the file with the settings of a growing one."""


class PredictionFile:
    """Lines of JSON in `<path>.part`, renamed to `path` when they are complete.

    A part that is there already is continued if its settings and files are the same: then the
    result equals that of a work without interruption. An incomplete last line is dropped. Use it as
    a context manager; after an error, the part stays.

    Args:
        path: the final file.
        files: the files whose lines are written, in order.
        resumable: whether files have one line each.

    Attributes:
        done: number of files whose lines are there already.

    Raises:
        UserError: `path` exists, cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, files: Sequence[Path], *, resumable: bool = True) -> None:
        self._path = path
        self._part = path.with_name(path.name + PART)
        self._settings_file = path.with_name(path.name + SETTINGS)
        self._files = files
        self.done = 0
        require_absent(path, f"--out {path}")
        if not resumable and self._part.exists():
            raise self._refused("exists, and audio of a stream cannot be continued", "file-exists")
        try:
            self._file = self._part.open("a+", encoding="utf-8")
        except OSError as cause:
            raise UserError(
                f"The file cannot be written: {cause.strerror}.",
                where=f"--out {path}",
                code="file-unwritable",
            ) from cause
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise self._refused("is written by another process", "file-unwritable") from None

    def start(self, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begin, or continue where the part ends.

        Args:
            settings: all that the lines depend on, plain JSON.

        Returns:
            The lines that are there already. They have to be read before others are written.

        Raises:
            UserError: the part is of other settings or files.
        """
        drop_incomplete_line(self._part)
        if self._part.stat().st_size == 0:
            replace_text(self._settings_file, json.dumps(settings))
            return
        before = self._read_settings()
        if before != settings:
            names = sorted(
                name
                for name in {*before, *settings}
                if before.get(name, ...) != settings.get(name, ...)
            )
            raise self._refused(
                f"was begun with other settings ({', '.join(names)})", "resume-conflict"
            )
        self._file.seek(0)
        for line in iter(self._file.readline, ""):
            if self.done >= len(self._files):
                raise self._refused("has more lines than there are files", "resume-conflict")
            expected = str(self._files[self.done])
            try:
                content = json.loads(line)
                found = content["file"]
            except (ValueError, KeyError, TypeError):
                raise self._refused(
                    f"has no prediction in line {self.done + 1}", "file-malformed"
                ) from None
            if found != expected:
                raise self._refused(
                    f"has {found} in line {self.done + 1}, where {expected} was given",
                    "resume-conflict",
                )
            self.done += 1
            yield content

    def write(self, line: str) -> None:
        """Append a line, which ends in a newline."""
        self._file.write(line)
        self._file.flush()

    def _read_settings(self) -> dict[str, Any]:
        try:
            read: dict[str, Any] = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise self._refused(
                f"has no readable {self._settings_file.name}", "resume-conflict"
            ) from None
        return read

    def _refused(self, why: str, code: str) -> UserError:
        return UserError(
            f"{self._part} {why}.",
            where=f"--out {self._path}",
            fix="Give the command that began it to continue it, or remove it, or choose another "
            "name.",
            code=code,
        )

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            os.replace(self._part, self._path)
            self._settings_file.unlink(missing_ok=True)
        elif self._part.stat().st_size == 0:
            # Nothing to continue, such as after a mistake in the command.
            self._part.unlink(missing_ok=True)
            self._settings_file.unlink(missing_ok=True)
        self._file.close()
