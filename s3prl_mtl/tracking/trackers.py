"""Programs that show the numbers of runs: TensorBoard, CSV files, Weights & Biases, MLflow.

Each takes the same names: `<task>/<split>-<metric>`, such as `ks/dev-accuracy`.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from s3prl_mtl.errors import UserError, error_summary, nearest, require_packages
from s3prl_mtl.fileio.atomic import drop_incomplete_line, replace_text
from s3prl_mtl.registry.plugins import TRACKERS, discover_trackers, find_plugin

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

NO_TRACKER = "none"


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker records.

    Attributes:
        folder: the run directory; its name is that of the run.
        config: complete, as in `config.yaml`; empty in an evaluation.
        resumed_at: the step that training resumes at: later steps are taken again. 0 for a new
            run, None to append only, as an evaluation does.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    resumed_at: int | None = None


class Tracker(ABC):
    """Record the metrics of a run, on its first rank.

    A package adds its own by an entry point in the group `s3prl_mtl.trackers`.

    Args:
        run: the run.

    Raises:
        UserError: the program or its service cannot be used.
    """

    packages: ClassVar[Sequence[str]] = ()
    """Modules of the extra `trackers` that it imports."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of a step, which may be NaN or infinite.

        A later call may be of the same step, and of one that an interrupted run had taken before.
        """

    def log_image(self, step: int, name: str, image: Image) -> None:  # noqa: B027
        """Record a figure, which is also in the run directory. By default, do nothing."""

    def summarize(self, results: Mapping[str, float]) -> None:  # noqa: B027
        """Record the finite metrics of the last evaluation of each split, before :meth:`finish`."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """Write what is pending. `failed`: the run has ended with an error."""


class TensorBoard(Tracker):
    """Event files in the run directory."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        super().__init__(run)
        purge_step = None
        if run.resumed_at is not None and any(run.folder.glob("events.out.tfevents.*")):
            purge_step = run.resumed_at + 1 if run.resumed_at else 0
        self._writer = SummaryWriter(str(run.folder), purge_step=purge_step)
        if run.config:
            self._text("config", f"```yaml\n{as_yaml(run.config)}```", run.resumed_at or 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def log_image(self, step: int, name: str, image: Image) -> None:
        import numpy as np

        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def summarize(self, results: Mapping[str, float]) -> None:
        rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in results.items())
        self._text("results", f"| metric | value |\n| --- | --- |\n{rows}", 0)

    def finish(self, failed: bool) -> None:
        self._writer.close()

    def _text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)


class Csv(Tracker):
    """`metrics.csv`: a row for each number (step, name, value), and `results.csv`.

    Numbers that are not finite are empty.
    """

    HEADER = ("step", "name", "value")

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        path = run.folder / "metrics.csv"
        is_new = not path.is_file() or run.resumed_at == 0
        if is_new:
            replace_text(path, ",".join(self.HEADER) + "\r\n")
        else:
            drop_incomplete_line(path)
            if run.resumed_at is not None:
                self._drop_later(path, run.resumed_at)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)

    @staticmethod
    def _drop_later(path: Path, step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        kept = [line for line in lines if int(line.split(",", 1)[0]) <= step]
        replace_text(path, "".join(f"{line}\r\n" for line in (",".join(Csv.HEADER), *kept)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._rows.writerow([step, name, _finite(value)])
        self._file.flush()

    def summarize(self, results: Mapping[str, float]) -> None:
        rows = "".join(f"{name},{value!r}\r\n" for name, value in results.items())
        replace_text(self.run.folder / "results.csv", f"name,value\r\n{rows}")

    def finish(self, failed: bool) -> None:
        self._file.close()


class WandB(Tracker):
    """A run of Weights & Biases: `WANDB_PROJECT` (default: s3prl-mtl), `WANDB_MODE=offline`, ...

    The horizontal axis is `step`. A resumed run continues the same one; steps that are taken again
    have the same values.
    """

    packages = ("wandb",)

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        wandb = import_module("wandb")
        with _refused(wandb.errors.Error, "wandb", "Log in (`wandb login`), or WANDB_MODE=offline"):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "s3prl-mtl"),
                name=run.folder.resolve().name,
                id=kept_id(run, "wandb", lambda: secrets.token_hex(4)),
                resume="allow",
                dir=run.folder,
                config=dict(run.config) or None,
            )
        self._image = wandb.Image
        self._table = wandb.Table
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def log_image(self, step: int, name: str, image: Image) -> None:
        self._run.log({"step": step, name: self._image(image)})

    def summarize(self, results: Mapping[str, float]) -> None:
        self._run.summary.update(dict(results))
        rows = [[name, value] for name, value in results.items()]
        self._run.log({"results": self._table(columns=["metric", "value"], data=rows)})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run of MLflow, at `MLFLOW_TRACKING_URI` (default: `mlruns` beside the run directory), in
    the experiment `MLFLOW_EXPERIMENT_NAME` (default: s3prl-mtl).

    The settings are its parameters, which MLflow never changes: those of the last start are in
    the artifact `config.yaml`. A resumed run continues the same one; steps that are taken again
    have the same values.
    """

    packages = ("mlflow",)
    limits: ClassVar[Mapping[str, str]] = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
    """Limits of requests that the environment does not set. With MLflow's own, all processes of a
    run would wait minutes for an unreachable server."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        for name, value in self.limits.items():
            os.environ.setdefault(name, value)
        mlflow = import_module("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # Files are in maintenance mode; a database needs the whole of mlflow.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.folder.resolve().parent / "mlruns").as_uri()
        error = mlflow.exceptions.MlflowException
        self._metric = mlflow.entities.Metric
        self._parameter = mlflow.entities.Param
        with _refused(error, "mlflow", "Check MLFLOW_TRACKING_URI"):
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._id = kept_id(run, "mlflow", lambda: self._create(run))
            is_new = run.resumed_at == 0
            try:
                self._client.update_run(self._id, status="RUNNING")
            except error as cause:
                if cause.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # The folder was moved, or the server is another one.
                logger.warning("MLflow has no run %s; starting a new one.", self._id)
                (run.folder / "mlflow-id.txt").unlink()
                self._id = kept_id(run, "mlflow", lambda: self._create(run))
                is_new = True
            flat = list(flatten(run.config)) if is_new else []
            for start in range(0, len(flat), 100):  # the most of one request
                parameters = [
                    self._parameter(_name(key), str(value)[:6000])
                    for key, value in flat[start : start + 100]
                ]
                self._client.log_batch(self._id, params=parameters)
            if run.config:
                self._client.log_text(self._id, as_yaml(run.config), "config.yaml")

    def _create(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "s3prl-mtl")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        made = self._client.create_run(experiment, run_name=run.folder.resolve().name)
        return str(made.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(_name(key), value, now, step) for key, value in values.items()]
        for start in range(0, len(metrics), 1000):  # the most of one request
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def log_image(self, step: int, name: str, image: Image) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}-{step}.png")

    def summarize(self, results: Mapping[str, float]) -> None:
        self._client.log_dict(self._id, dict(results), "results.json")

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


BUILT_IN: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
    "mlflow": MLflow,
}


def find_trackers(text: str) -> dict[str, Callable[[TrackedRun], Tracker]]:
    """The trackers of a list such as ``tensorboard,wandb``; empty for ``none``.

    Raises:
        UserError: there is no such tracker, or its package is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [NO_TRACKER]:
        return {}
    plugins = discover_trackers()
    found: dict[str, Callable[[TrackedRun], Tracker]] = {}
    for name in names:
        if name in BUILT_IN:
            found[name] = BUILT_IN[name]
            require_packages(BUILT_IN[name].packages, f"--track {name}", "trackers")
        elif name in plugins or ":" in name:
            found[name] = find_plugin(TRACKERS, name).load()
        elif name == NO_TRACKER:
            raise UserError(
                f"{NO_TRACKER!r} cannot be combined with other trackers.",
                where=f"--track {text}",
                fix="Remove it, or the others.",
                code="conflicting-options",
            )
        else:
            raise UserError(
                f"There is no tracker named {name!r}.",
                where=f"--track {text}",
                fix=nearest(name, [*BUILT_IN, *plugins, NO_TRACKER]),
                code="unknown-name",
            )
    return found


def start_trackers(text: str, run: TrackedRun) -> dict[str, Tracker]:
    """The trackers of a list, at work for a run.

    Raises:
        UserError: as :func:`find_trackers`, or a program or its service refuses to work; those that
            were started are finished.
    """
    started: dict[str, Tracker] = {}
    for name, tracker in find_trackers(text).items():
        try:
            with _refused(Exception, name, "Mend this"):
                started[name] = tracker(run)
        except UserError:
            for other in started.values():
                with suppress(Exception):
                    other.finish(failed=True)
            raise
    return started


def kept_id(run: TrackedRun, program: str, create: Callable[[], str]) -> str:
    """The identifier of a run in a program, kept in a file of the run directory.

    A run that starts anew, in a folder of an earlier one, gets another.
    """
    path = run.folder / f"{program}-id.txt"
    if not path.is_file() or run.resumed_at == 0:
        replace_text(path, f"{create()}\n")
    return path.read_text(encoding="utf-8").strip()


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


@contextmanager
def _refused(kind: type[Exception], name: str, fix: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except kind as cause:
        raise UserError(
            f"{name} cannot be used: {error_summary(cause)}.",
            where=f"--track {name}",
            fix=f"{fix}, or leave {name} out.",
            code="tracker-failed",
        ) from cause


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _name(text: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. /]", "_", text)


def summary(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The numbers of `results.json` by the names of trackers."""
    return {
        f"{task}/{split}-{metric}": value
        for task, splits in results.items()
        for split, values in splits.items()
        for metric, value in values.items()
    }
