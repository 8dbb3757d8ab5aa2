"""Checks that a checkpoint fits a run: encoder, featurizer, heads, and settings on resuming."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import RunConfig, resolve_plain
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.task_names import TaskPackageMissing
from s3prl_mtl.upstreams import Featurizer, Upstream

logger = logging.getLogger(__name__)

ENCODER_SETTINGS = ("upstream.name", "upstream.ckpt", "upstream.feature_selection")
"""Settings that decide which weights there are."""
TRAINING_SETTINGS = (
    "upstream.freeze",
    "upstream.freeze_layers",
    "runner.unfreeze_after",
    "optimizer",
    "scheduler",
    "balancer",
    "init_ckpt",
    "init_upstream_ckpt",
)
"""Settings that the state of the optimizer or the schedule, or the first weights, depend on."""
FIRST_LAYERS = ("projector.weight", "connector.weight", "model.rnn.weight_ih_l0")
"""Layers of the nine tasks' heads that read the features."""

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_WIDTH = re.compile(r"(?:^|\.)layers?\.0\.(?:.*\.)?(?:layer_norm|LayerNorm|.*_layer_norm)\.weight$")

_FIX_ENCODER = (
    "Name the upstream that the checkpoint was trained from (-u, -k), or another checkpoint."
)


def check_resume(saved: RunCheckpoint, config: Mapping[str, Any], past: Path | None) -> None:
    """Refuse to resume training with settings that the state of a checkpoint does not fit.

    Raises:
        UserError: names the setting with its old and its new value.
    """
    if saved.training is None:
        what = "a best checkpoint" if saved.origin is None else f"one of {saved.origin}"
        raise UserError(
            f"The checkpoint is {what} and holds weights only: training cannot resume from it.",
            where=f"-e {past}",
            fix=f"Start a new run from these weights with -i {past} instead of -e, or resume from "
            "a states-*.ckpt of this package.",
            code="checkpoint-incomplete",
        )
    tasks = list(saved.tasks)
    if set(tasks) != set(config["downstream"]):
        raise UserError(
            f"The run trains {','.join(tasks)} and cannot resume with "
            f"{','.join(config['downstream'])}.",
            where="-d",
            fix=f"Leave out -d ({','.join(tasks)}), or start a new run from these weights with -i.",
            code="resume-conflict",
        )
    check_evaluate(saved, config)
    keys = [*TRAINING_SETTINGS]
    schedule = config["scheduler"]
    if schedule is not None and schedule["name"] != "linear_schedule_with_warmup":
        # torch's own schedules keep their length in their state.
        keys.append("runner.total_steps")
    for task in tasks:
        was, now = (_value(c, f"{task}.fraction") or 1.0 for c in (saved.config, config))
        if was != now:
            raise _changed(f"{task}.fraction", was, now)
    # Files of earlier versions have no balancer.
    _check_unchanged({"balancer": {"name": "sum"}, **saved.config}, config, keys)


def warn_of_schedule(saved: RunCheckpoint, config: RunConfig) -> None:
    """Warn if a linear decay has another end than the run that is resumed.

    Args:
        saved: the checkpoint.
        config: of the resumed run.
    """
    before = _value(resolve_plain(saved.config), "runner.total_steps")
    now = config.runner.total_steps
    if not config.scheduler or before == now:
        return
    finished = f"The run was finished at step {saved.step}. " if saved.step >= before else ""
    logger.warning(
        "%srunner.total_steps was %s and is %s now: the learning rate continues on a decay that "
        "ends at step %s, so the run differs from one that was started with %s steps.",
        *(finished, before, now, now, now),
    )


def check_evaluate(saved: RunCheckpoint, config: Mapping[str, Any]) -> None:
    """Refuse settings of another encoder. (Heads that do not fit are refused on loading.)

    Raises:
        UserError: names the setting with its old and its new value.
    """
    # An encoder without a description is built from its file, which may have been moved.
    movable = () if saved.upstream_info is not None else ("upstream.ckpt",)
    _check_unchanged(saved.config, config, [key for key in ENCODER_SETTINGS if key not in movable])


@contextmanager
def requiring_all_tasks() -> Iterator[None]:
    """Replace the advice of `TaskPackageMissing`: training resumes with all tasks of a run.

    Raises:
        TaskPackageMissing: as raised inside, without the advice to leave the task out.
    """
    try:
        yield
    except TaskPackageMissing as error:
        advice = f"Install {error.package} again: training resumes with all tasks of a run."
        raise TaskPackageMissing(error.task, error.package, advice) from error


def check_encoder(weights: Mapping[str, Any], upstream: Upstream, where: str) -> None:
    """Refuse the weights of an encoder of another size or architecture.

    Args:
        weights: state dict of an encoder.
        upstream: the encoder that takes them.
        where: what gave the weights, for errors.

    Raises:
        UserError: another number of layers, layers of another width, or no parameter in common.
    """
    state = upstream.state_dict()
    found, expected = _size(weights), _size(state)
    if expected is not None:
        check_size(weights, *expected, where)
    if weights and not _bare_names(weights) & _bare_names(state):
        size = f" of {_show_size(*found)}" if found is not None else ""
        raise UserError(
            f"The checkpoint holds an encoder{size} of another architecture than this run's: they "
            "have no parameter in common.",
            where=where,
            fix=_FIX_ENCODER,
            code="checkpoint-mismatch",
        )


def check_size(weights: Mapping[str, Any], layers: int, width: int, where: str) -> None:
    """Refuse the weights of an encoder of another depth or width.

    Raises:
        UserError: another number of layers, or layers of another width.
    """
    found = _size(weights)
    if found is not None and found != (layers, width):
        raise UserError(
            f"The checkpoint holds an encoder of {_show_size(*found)}; this run's has "
            f"{_show_size(layers, width)}.",
            where=where,
            fix=_FIX_ENCODER,
            code="checkpoint-mismatch",
        )


def check_selection(
    weights: Mapping[str, Any], upstream: Upstream, featurizer: Featurizer, where: str
) -> None:
    """Refuse the state dict of a featurizer of another number of layers.

    Raises:
        UserError: names the `-s` that has as many.
    """
    saved = len(weights["weights"]) if "weights" in weights else 0
    expected = len(featurizer.weights) if featurizer.weights is not None else 0
    if saved == expected:
        return
    by_count = {
        0: "last_hidden_state",
        upstream.num_hidden_states - 1: "layer_results",
        upstream.num_hidden_states: "hidden_states",
    }
    raise UserError(
        f"The checkpoint has {saved} layer weights; this run has {expected}.",
        where=where,
        fix=f"Use -s {by_count[saved]}."
        if saved in by_count
        else "Name the upstream that the checkpoint was trained with.",
        code="checkpoint-mismatch",
    )


def check_head(task: str, weights: Mapping[str, Any], expert: nn.Module, where: str) -> None:
    """Refuse a head for features of another width.

    Raises:
        UserError: names both widths.
    """
    state = expert.state_dict()
    for layer in FIRST_LAYERS:
        if layer in state and layer in weights and state[layer].dim() == weights[layer].dim() == 2:
            expected, found = state[layer].shape[1], weights[layer].shape[1]
            if expected != found:
                raise UserError(
                    f"The head of {task} takes features of width {found}; the upstream gives "
                    f"features of width {expected}.",
                    where=where,
                    fix="Name the upstream that the head was trained with, or another head.",
                    code="checkpoint-mismatch",
                )


def _check_unchanged(
    before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]
) -> None:
    old, new = resolve_plain(before), resolve_plain(now)
    for key in keys:
        was, is_now = _value(old, key), _value(new, key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            _check_unchanged(old, new, [f"{key}.{name}" for name in {**was, **is_now}])
        elif was != is_now:
            raise _changed(key, was, is_now)


def _changed(key: str, was: Any, now: Any) -> UserError:
    before, after = ("not set" if value is None else repr(value) for value in (was, now))
    leave = "Leave it out" if was is None else f"Leave it at {was!r}"
    return UserError(
        f"{key} was {before} when the checkpoint was saved and is {after} now.",
        where=f"{key} in the config, or its flag",
        fix=f"{leave}, or start a new run.",
        code="resume-conflict",
    )


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _bare_names(weights: Mapping[str, Any]) -> set[str]:
    """Names without the prefixes of modules that wrap an encoder."""
    return {name.removeprefix("expert.").removeprefix("model.") for name in weights}


def _show_size(layers: int, width: int) -> str:
    return f"{layers} layers of width {width}"


def _size(weights: Mapping[str, Any]) -> tuple[int, int] | None:
    """Number and width of the layers; None where no parameter is named as that of a layer."""
    numbers = [int(match.group(1)) for name in weights if (match := _LAYER.search(name))]
    widths = [
        value.shape[0]
        for name, value in weights.items()
        if isinstance(value, Tensor) and value.dim() == 1 and _WIDTH.search(name)
    ]
    return (max(numbers) + 1, widths[0]) if numbers and widths else None
