"""Adapt unmodified s3prl experts to the interface of the runner."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from s3prl_mtl.data.epoch_reader import accepts_argument
from s3prl_mtl.errors import UserError, error_summary
from s3prl_mtl.s3prl_compat.loading import load_expert
from s3prl_mtl.s3prl_compat.task_spec import PREFIX, parse_spec
from s3prl_mtl.tasks.base import ScalarLogger

logger = logging.getLogger(__name__)


def load_as_task(spec: str, folder: str | None = None) -> type:
    """The class of a task `s3prl:...`, adapted to the runner.

    Args:
        spec: as after `-d`, or the name of the task.
        folder: of the expert, if the spec is only a name.

    Raises:
        UserError: there is no such expert, or it cannot be imported.
    """
    parsed = parse_spec(spec)
    place = folder or parsed.folder or parsed.name.removeprefix(PREFIX)
    return as_task(load_expert(place), place)


def as_task(expert: type, folder: str) -> type:
    """A subclass of an expert's class that the runner can train.

    Args:
        expert: s3prl's `DownstreamExpert` of a folder.
        folder: for errors.
    """
    return type(expert.__name__, (S3prlTask, expert), {"folder": folder})


class SingleRecord(NamedTuple):
    """A recorded value that is not a list; the runner concatenates lists."""

    value: Any


class S3prlTask:
    """A mixin before the expert's class that supports behaviour accepted by s3prl's runner.

    - Experts may change their settings (`ctc` pops `num_workers` and uses 12 for the next
      loader): they get a copy, restored before each loader.
    - They may record a value that is not a list, under a key of its own (`sv_voxceleb1` records
      each embedding under the name of its file).
    - They may rely on forked loader workers, which newer Pythons do not use by default.
    - They may log audio or images, and return None instead of names of checkpoints.
    - Their errors about paths and settings are reported with their folder.
    """

    folder: ClassVar[str]

    def __init__(
        self,
        upstream_dim: int,
        upstream_rate: int,
        downstream_expert: Mapping[str, Any],
        expdir: str | os.PathLike[str],
        **arguments: Any,
    ) -> None:
        settings = copy.deepcopy(dict(downstream_expert))
        try:
            super().__init__(  # type: ignore[call-arg]
                upstream_dim=upstream_dim,
                upstream_rate=upstream_rate,
                downstream_expert=settings,
                expdir=str(expdir),
                **arguments,
            )
        except Exception as cause:
            raise self._failed("cannot be built", cause) from cause
        self._settings = settings
        # A copy after construction: `diarization` adds some settings.
        self._built_settings = copy.deepcopy(settings)

    def get_dataloader(self, split: str, epoch: int = 0) -> Iterable[Any]:
        """The expert's loader of a split.

        Raises:
            UserError: the expert fails, or does not have the split.
        """
        get_dataloader = super().get_dataloader  # type: ignore[misc]
        _restore(self._settings, self._built_settings)
        arguments = {"epoch": epoch} if accepts_argument(get_dataloader, "epoch") else {}
        try:
            loader: Iterable[Any] | None = get_dataloader(split, **arguments)
        except Exception as cause:
            raise self._failed(f"cannot load the split {split!r}", cause) from cause
        if loader is None:
            raise UserError(
                f"s3prl's expert {self.folder!r} has no split {split!r}.",
                where="train_split, dev_splits or test_splits of the task, or -t",
                fix="See its get_dataloader for the splits it has.",
                code="unknown-name",
            )
        if isinstance(loader, DataLoader):
            _fork_workers(loader)
        return loader

    def forward(
        self,
        split: str,
        features: list[Tensor],
        *others: Any,
        records: dict[str, list[Any]],
        **numbers: int,
    ) -> Tensor:
        """The expert's loss of a batch; see :class:`s3prl_mtl.tasks.base.TaskExpert`."""
        forward = super().forward  # type: ignore[misc]
        known = {name: n for name, n in numbers.items() if accepts_argument(forward, name)}
        own: dict[str, Any] = defaultdict(list)
        try:
            loss: Tensor = forward(split, features, *others, records=own, **known)
        except (AssertionError, RuntimeError) as cause:
            if features[0].is_cuda or not _wants_gpu(cause):
                raise
            raise UserError(
                f"s3prl's expert {self.folder!r} calls .cuda() and runs on a GPU only.",
                where="--device",
                fix="Train it on a machine with a GPU, or leave it out of -d.",
                code="device-unavailable",
            ) from cause
        for key, values in own.items():
            if isinstance(values, list):
                records[key] += values
            else:
                records[key].append(SingleRecord(values))
        return loss

    def log_records(
        self,
        split: str,
        records: Mapping[str, Sequence[Any]],
        logger: ScalarLogger,
        global_step: int,
        batch_ids: Sequence[int] = (),
        total_batch_num: int = 0,
    ) -> list[str]:
        """Log the expert's metrics; return the names of the checkpoints to save."""
        plain: dict[str, Any] = defaultdict(list)
        for key, values in records.items():
            single = len(values) > 0 and all(isinstance(value, SingleRecord) for value in values)
            plain[key] = values[-1].value if single else list(values)
        names = super().log_records(  # type: ignore[misc]
            split,
            records=plain,
            logger=ScalarsOnly(logger),
            global_step=global_step,
            batch_ids=list(batch_ids),
            total_batch_num=total_batch_num,
        )
        return list(names) if isinstance(names, list) else []

    def _failed(self, what: str, cause: Exception) -> UserError:
        if isinstance(cause, UserError):
            return cause
        return UserError(
            f"s3prl's expert {self.folder!r} {what}: {error_summary(cause)}.",
            where="its settings, `downstream_expert` in its block of the config",
            fix="Relative paths there start at the working folder; --verbose shows the traceback.",
            code="expert-failed",
        )


class ScalarsOnly:
    """A logger for experts: passes scalars to the runner's logger and drops everything else."""

    def __init__(self, scalars: ScalarLogger) -> None:
        self.scalars = scalars

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.add_scalar(tag, float(scalar_value), global_step=global_step)

    def add_audio(self, tag: str, *_arguments: object, **_settings: object) -> None:
        logger.debug("%s is dropped: only scalars are logged", tag)

    add_image = add_figure = add_text = add_histogram = add_embedding = add_audio


def _fork_workers(loader: DataLoader[Any]) -> None:
    """Fork the workers of a loader, unless it states another start method.

    The finder that imports the modules of experts does not exist in a spawned process.
    """
    unstated = loader.num_workers > 0 and loader.multiprocessing_context is None
    if unstated and sys.platform == "linux":
        loader.multiprocessing_context = "fork"


def _wants_gpu(error: Exception) -> bool:
    text = str(error)
    return "not compiled with CUDA" in text or "NVIDIA" in text or "CUDA GPUs" in text


def _restore(settings: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Restore settings in place, because parts of them are attributes of the expert."""
    for key in settings.keys() - given.keys():
        del settings[key]
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            _restore(settings[key], value)
        else:
            settings[key] = copy.deepcopy(value)
