"""Write and read the numbers of a run: `metrics.jsonl`, `results.json`, trackers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from s3prl_mtl.checkpoint.contents import TaskCheckpoint
from s3prl_mtl.errors import UserError, error_summary
from s3prl_mtl.fileio.atomic import atomic_path, drop_incomplete_line, replace_text
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.tracking.trackers import Tracker, summary

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]
"""{task: {split: {metric: value}}}, fractions."""

SOURCE = "_source"
"""The key of `results.json` beside the tasks: {task: {split: {"step": 3, "checkpoint": file}}}."""

FEATURIZER = "featurizer"
"""The key of the learned layer weights in `Results`: {featurizer: {layer_weights: {...}}}."""


GRADIENTS = "gradients"
"""The task of numbers on the gradients of the tasks, in `metrics.jsonl`; the split is a group of
layers."""


@dataclass
class Report:
    """The numbers of one split of one task, as its expert wrote them.

    Looks like a `SummaryWriter` to the expert. Scalars are named `<prefix>/<split>-<metric>` by
    s3prl's contract; only the metric is news.

    Attributes:
        scalars: (metric, value, step), in the order written.
        save_names: checkpoints that the values earned.
        head: what these checkpoints hold of the task, where the rank that writes has no such head.
        problem: why the split cannot be scored; its scalars are NaN then.
        checkpoint: the file in the run's folder that the numbers are of; None for the weights in
            training.
        conditions: what the numbers depend on, as the expert states it.
        metrics: declared by the expert, for the log.
    """

    task: str
    split: str
    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    save_names: list[str] = field(default_factory=list)
    head: TaskCheckpoint | None = None
    problem: UserError | None = None
    checkpoint: str | None = None
    conditions: str = ""
    metrics: Sequence[Metric] = ()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        metric = tag.rpartition("/")[2].removeprefix(f"{self.split}-")
        self.scalars.append((metric, float(scalar_value), int(global_step)))

    @property
    def values(self) -> dict[str, float]:
        return {metric: value for metric, value, _ in self.scalars}

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.task} {self.split}  cannot be scored: {self.problem}"
        declared = {metric.name: metric for metric in self.metrics}
        shown = "  ".join(
            f"{self.title(name)} {declared[name].shown(value)}"
            if name in declared
            else f"{name} {value:.4f}"
            for name, value in self.values.items()
        )
        return f"{self.task} {self.split}  {shown}"

    def title(self, name: str) -> str:
        """The title of a metric in tables and the log; its name if it is not declared."""
        return next((metric.title for metric in self.metrics if metric.name == name), name)


class Recorder:
    """Write every number of a run to `metrics.jsonl`, `results.json` and trackers.

    A tracker that fails is left out with a warning: its numbers are in the files.

    Args:
        folder: the run directory.
        resumed_at: the step that training resumes at, 0 for a new run. Records of later steps are
            dropped, since these steps are taken again. None to append only, as evaluation does,
            also while another process trains in the folder.
        reevaluate: pairs of task and split to evaluate again at that step, because their
            evaluation was interrupted: their records of that step are dropped too.
        trackers: by name; closed with the recorder.
    """

    def __init__(
        self,
        folder: Path,
        resumed_at: int | None = None,
        reevaluate: Iterable[tuple[str, str]] = (),
        trackers: Mapping[str, Tracker] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self._trackers = dict(trackers)
        self._pending: dict[str, float] = {}
        self._step = 0
        path = folder / "metrics.jsonl"
        if path.is_file() and resumed_at is None:
            drop_incomplete_line(path)
        elif path.is_file() and resumed_at is not None:
            after = resumed_at + 1 if resumed_at else 0
            again = {(resumed_at, task, split) for task, split in reevaluate}
            kept = [
                entry
                for entry in read_metrics(folder)
                if entry["step"] < after
                and (entry["step"], entry["task"], entry["split"]) not in again
            ]
            _replace(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._lines = path.open("a", encoding="utf-8")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    def close(self, failed: bool = False) -> None:
        """Close the files, and the trackers with the last results."""
        try:
            self._lines.close()
        except OSError as cause:  # buffered lines still cannot be written
            logger.warning("metrics.jsonl is incomplete: %s", cause)
        self.flush()
        results = summary(self.results)
        self._tell(lambda tracker: tracker.summarize(results))
        self._tell(lambda tracker: tracker.finish(failed))

    def record(
        self,
        task: str,
        split: str,
        metric: str,
        value: float,
        step: int,
        checkpoint: str | None = None,
        conditions: str = "",
    ) -> None:
        """Write one number: a line of `metrics.jsonl`, a point of a curve.

        Args:
            task, split, metric, value, step: of the number.
            checkpoint: file in the run's folder; None for the weights in training.
            conditions: what the number depends on. Kept of evaluations of checkpoints, whose
                settings may differ from those in the `config.yaml` of the run.

        Raises:
            UserError: the disk is full.
        """
        # JSON has no NaN and no infinity: write null.
        stored = value if math.isfinite(value) else None
        entry: dict[str, Any] = {
            "step": step,
            "task": task,
            "split": split,
            "metric": metric,
            "value": stored,
        }
        if checkpoint is not None:
            entry["checkpoint"] = checkpoint
            if conditions:
                entry["conditions"] = conditions
        try:
            self._lines.write(json.dumps(entry) + "\n")
            self._lines.flush()
        except OSError as cause:
            raise _unwritable(self.folder / "metrics.jsonl", cause) from cause
        name = f"{task}/{split}-{metric}"
        if step != self._step or name in self._pending:
            self.flush()
        self._step = step
        self._pending[name] = value

    def flush(self) -> None:
        """Give the numbers recorded since the last call to the trackers."""
        if self._pending:
            step, values = self._step, self._pending
            self._pending = {}
            self._tell(lambda tracker: tracker.log(step, values))

    def draw(self, name: str, image: Image, step: int) -> None:
        """Write a figure: `<name>.png` in the run directory, and an image of the trackers.

        Raises:
            UserError: the disk is full.
        """
        path = self.folder / f"{name}.png"
        try:
            with atomic_path(path) as partial:
                image.save(partial)
        except OSError as cause:
            raise _unwritable(path, cause) from cause
        self._tell(lambda tracker: tracker.log_image(step, name, image))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as cause:  # of whatever program
                del self._trackers[name]
                logger.warning(
                    "The tracker %s failed and gets no further metrics (metrics.jsonl does): %s",
                    name,
                    error_summary(cause),
                )

    def write(self, report: Report) -> None:
        """Write all numbers of a split."""
        for metric, value, step in report.scalars:
            self.record(
                report.task,
                report.split,
                metric,
                value,
                step,
                report.checkpoint,
                report.conditions,
            )

    def keep(self, report: Report) -> None:
        """Replace the entry of a split in `results.json`; non-finite numbers are left out."""
        finite = {name: value for name, value in report.values.items() if math.isfinite(value)}
        # Read the file again: another process may evaluate the run while it is trained.
        results: dict[str, Any] = _read_results(self.folder)
        results.setdefault(report.task, {})[report.split] = finite
        sources = results.pop(SOURCE, {})
        step = max((step for _, _, step in report.scalars), default=None)
        source = {"step": step, "checkpoint": report.checkpoint}
        sources.setdefault(report.task, {})[report.split] = source
        results[SOURCE] = sources  # last, after the tasks
        _replace(self.folder / "results.json", json.dumps(results, indent=2) + "\n")

    @property
    def results(self) -> Results:
        """The results of the run so far."""
        return read_results(self.folder)


def _replace(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as cause:
        raise _unwritable(path, cause) from cause


def _unwritable(path: Path, cause: OSError) -> UserError:
    return UserError(
        f"The metrics of the run cannot be written: {cause.strerror or cause}.",
        where=str(path),
        fix="Free space there or make it writable, then resume from the last checkpoint with -a.",
        code="file-unwritable",
    )


def read_results(folder: Path) -> Results:
    """The numbers in `results.json` of a run; empty if it does not exist or is damaged."""
    return {task: splits for task, splits in _read_results(folder).items() if task != SOURCE}


def read_sources(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Step and checkpoint of the numbers in `results.json`: {task: {split: {...}}}."""
    sources: dict[str, dict[str, dict[str, Any]]] = _read_results(folder).get(SOURCE, {})
    return sources


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as cause:
        # No number is lost: metrics.jsonl has them all.
        logger.warning("%s is damaged and will be replaced: %s.", path, cause)
        return {}
    return results


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of `metrics.jsonl`, oldest first: step, task, split, metric, value.

    Records of an evaluation of a checkpoint also have its file name, `checkpoint`, and
    `conditions` where the expert states them.

    Raises:
        UserError: the folder is not that of a run, or a line is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it has no metrics.jsonl.",
            where=str(folder),
            code="file-missing",
        )
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            # A run that was killed while writing leaves at most one incomplete last line.
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as cause:
                raise UserError(
                    f"Line {number} is not JSON: {cause}.",
                    where=f"{path}, line {number}",
                    fix="Delete that line; the others can be read.",
                    code="file-malformed",
                ) from cause
