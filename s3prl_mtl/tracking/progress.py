"""The progress of training, of evaluations and of predictions, shown on a terminal."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.columns import Columns
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from s3prl_mtl.tracking.console import MESSAGES, progress_is_shown

logger = logging.getLogger(__name__)

RATE_STEPS = 50
"""Latest steps that the seconds of audio per second are averaged over."""


_Self = TypeVar("_Self", bound="_Shown")


def total_loss(losses: Mapping[str, float]) -> float:
    """The sum of the losses of the tasks that are finite; NaN if none is."""
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    return math.fsum(finite) if finite else math.nan


class MessageBars(Progress):
    """Bars on the terminal of messages. A file or pipe that is the standard output gets its lines.

    Args:
        columns: of each bar; by default those of rich.
        shown: whether there is anything to see.
        options: of rich's `Progress`.
    """

    def __init__(self, *columns: str | ProgressColumn, shown: bool, **options: Any) -> None:
        # Lines on the same terminal would break the bars: rich prints them above.
        above = sys.stdout.isatty()
        super().__init__(
            *columns, console=MESSAGES, redirect_stdout=above, disable=not shown, **options
        )


class _Shown:
    """Shows a bar inside the context."""

    _progress: Progress

    def __enter__(self: _Self) -> _Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


class StepProgress(_Shown):
    """Steps, time left, speed and total loss on one line; below, the loss of each task.

    The line fits into 60 columns.

    Args:
        done: steps done before.
        total: steps of the run.
        shown: False for all but one of several processes.
    """

    _progress: _LineAndLosses

    def __init__(self, done: int, total: int, shown: bool = True) -> None:
        self._progress = _LineAndLosses(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[loss]}"),
            expand=True,
            shown=shown and progress_is_shown(),
        )
        self._bar = self._progress.add_task("train", completed=done, total=total, speed="", loss="")
        self._audio: deque[tuple[float, float]] = deque(maxlen=RATE_STEPS + 1)

    def __enter__(self) -> StepProgress:
        self._audio.append((time.monotonic(), 0.0))
        return super().__enter__()

    def advance(self, step: int, losses: Mapping[str, float], audio_seconds: float) -> None:
        """Show a step.

        Args:
            step: its number, from 1.
            losses: of each task; NaN where the task was dropped.
            audio_seconds: of its batches.
        """
        self._audio.append((time.monotonic(), audio_seconds))
        elapsed = self._audio[-1][0] - self._audio[0][0]
        seconds = math.fsum(audio for _, audio in list(self._audio)[1:])
        total = total_loss(losses)
        self._progress.losses = [f"{name} {loss:.3f}" for name, loss in losses.items()]
        self._progress.update(
            self._bar,
            completed=step,
            speed=f"{seconds / elapsed:.0f} s/s" if elapsed > 0 else "",
            loss=f"loss {total:.3f}",
        )


class EvaluationProgress(_Shown):
    """Task, split and batches of an evaluation on one line, removed at its end.

    The line fits into 60 columns, and below that of the training.

    Args:
        shown: False for all but one of several processes, and where another program shows progress.
    """

    def __init__(self, shown: bool = True) -> None:
        self._progress = MessageBars(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[batches]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            expand=True,
            transient=True,
            shown=shown and progress_is_shown(),
        )
        self._bar = self._progress.add_task("", total=None, batches="")
        self._total: int | None = None

    def begin(self, task: str, split: str, batches: int | None) -> None:
        """Show the beginning of a split.

        Args:
            task: its name.
            split: of the task.
            batches: of the split; None if unknown.
        """
        self._total = batches
        self._progress.reset(self._bar, total=batches, description=f"{task} {split}")
        self.advance(0)

    def advance(self, done: int) -> None:
        """Show the number of batches that were evaluated."""
        shown = f"{done} batches" if self._total is None else f"{done}/{self._total} batches"
        self._progress.update(self._bar, completed=done, batches=shown)


class _LineAndLosses(MessageBars):
    """A progress bar with a table of losses below, in as many columns as fit."""

    losses: list[str]

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        losses = getattr(self, "losses", [])
        if len(losses) > 1:
            yield Columns(losses, equal=True)


LOG_SECONDS = 60.0
"""Between two lines of the log on files, where there is no terminal."""


class FileProgress(_Shown):
    """Files done and the time left: a bar on a terminal, else a line of the log every minute.

    The time is estimated by the bytes of the files.

    Args:
        files: all of them.
        done: number of files done before.
        shown: False where something else shows it.
    """

    def __init__(self, files: Sequence[Path], done: int, shown: bool = True) -> None:
        self._sizes = [_size(file) for file in files]
        self._count, self._started_at = done, time.monotonic()
        self._before = self._bytes = sum(self._sizes[:done])
        self._shown = shown
        self._logged_at = self._started_at
        self._progress = MessageBars(
            TextColumn("{task.fields[files]} files"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            shown=shown and MESSAGES.is_terminal,
        )
        self._bar = self._progress.add_task(
            "files", completed=self._bytes, total=sum(self._sizes), files=self._files()
        )

    def __enter__(self) -> FileProgress:
        return super().__enter__()

    def advance(self, files: int) -> None:
        """Count the next files as done."""
        self._bytes += sum(self._sizes[self._count : self._count + files])
        self._count += files
        self._show(self._bytes)

    def within(self, fraction: float) -> None:
        """Show the part of the next file that is done."""
        self._show(self._bytes + fraction * self._sizes[self._count])

    def _files(self) -> str:
        return f"{self._count}/{len(self._sizes)}"

    def _show(self, completed: float) -> None:
        self._progress.update(self._bar, completed=completed, files=self._files())
        now = time.monotonic()
        if MESSAGES.is_terminal or not self._shown or now - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = now
        share = (now - self._started_at) / max(1.0, completed - self._before)
        left = timedelta(seconds=round(share * (sum(self._sizes) - completed)))
        logger.info("%s files, %s left", self._files(), left)


def _size(file: Path) -> int:
    """Bytes of a file; 1 if it has none, cannot be read, or is in an archive."""
    try:
        return max(1, file.stat().st_size)
    except OSError:
        return 1
