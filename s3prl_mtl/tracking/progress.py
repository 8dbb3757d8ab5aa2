"""The progress bar of a training run, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from s3prl_mtl.tracking.console import MESSAGES


class StepProgress:
    """A bar of the steps done, with the latest losses.

    Args:
        done: steps done before.
        total: steps of the run.
        shown: False for all but one of several processes.
    """

    def __init__(self, done: int, total: int, shown: bool = True) -> None:
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=MESSAGES,
            disable=not (shown and MESSAGES.is_terminal),
        )
        self._bar = self._progress.add_task("train", completed=done, total=total, losses="")

    def __enter__(self) -> StepProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, step: int, losses: Mapping[str, float]) -> None:
        shown = " ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
        self._progress.update(self._bar, completed=step, losses=shown)
