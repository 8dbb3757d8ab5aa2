"""What may change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_mtl.checkpoint.files import Checkpoint
from s3prl_mtl.config import resolve
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import TaskPackageMissing

# What decides which weights there are.
WEIGHTS = ("upstream.name", "upstream.ckpt", "upstream.feature_selection")
# And what went into the optimizer's and the schedule's state, or into the first weights.
TRAINING = ("upstream.freeze", "optimizer", "scheduler", "init_ckpt", "init_upstream_ckpt")


def check(saved: Checkpoint, config: Mapping[str, Any], past: Path | None) -> None:
    """Refuse to train on from a checkpoint with settings that its state does not fit.

    Raises:
        UserError: names the setting, what it was and what it is now.
    """
    if "Optimizer" not in saved:
        what = f"one of {saved['Origin']}" if "Origin" in saved else "a best checkpoint"
        raise UserError(
            f"The checkpoint is {what} and holds weights only: training cannot go on from it.",
            where=f"-e {past}",
            fix=f"Start a new run from these weights with -i {past} instead of -e, or resume from "
            "a states-*.ckpt of this package.",
        )
    tasks = list(saved["Tasks"])
    if set(tasks) != set(config["downstream"]):
        raise UserError(
            f"The run trains {','.join(tasks)}, and cannot go on with "
            f"{','.join(config['downstream'])}.",
            where="-d",
            fix="Leave out -d, or start a new run from these weights with -i.",
        )
    check_weights_fit(saved, config)
    keys = [*TRAINING]
    schedule = config["scheduler"]
    if schedule is not None and schedule["name"] != "linear_schedule_with_warmup":
        # torch's own schedules keep their length in their state.
        keys.append("runner.total_steps")
    _same(saved["Config"], config, keys)


@contextmanager
def with_all_tasks() -> Iterator[None]:
    """Training goes on with every task of a run: nobody is told to leave one out.

    Raises:
        TaskPackageMissing: as what is done inside, with that advice.
    """
    try:
        yield
    except TaskPackageMissing as gone:
        advice = f"Install {gone.package} again: training goes on with all tasks of a run, or not."
        raise TaskPackageMissing(gone.task, gone.package, advice) from gone


def check_weights_fit(saved: Checkpoint, config: Mapping[str, Any]) -> None:
    """Refuse another encoder than a checkpoint has. (Heads that do not fit show on loading.)

    Raises:
        UserError: names the setting, what it was and what it is now.
    """
    # Without a description of the encoder it is made from its file, wherever that is by now.
    movable = () if saved["UpstreamInfo"] is not None else ("upstream.ckpt",)
    _same(saved["Config"], config, [key for key in WEIGHTS if key not in movable])


def _same(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> None:
    old, new = resolve(before), resolve(now)
    for key in keys:
        was, is_now = _value(old, key), _value(new, key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            _same(old, new, [f"{key}.{name}" for name in {**was, **is_now}])
        elif was != is_now:
            raise UserError(
                f"{key} was {was!r} when the checkpoint was saved and is {is_now!r} now.",
                where="the config, or a flag",
                fix="Leave it as it was, or start a new run.",
            )


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
