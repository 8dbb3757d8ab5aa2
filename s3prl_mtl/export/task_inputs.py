"""The hidden states that the tasks of a run get from its encoder."""

from __future__ import annotations

import logging

import torch

from s3prl_mtl.errors import UserError
from s3prl_mtl.export.formats import Options
from s3prl_mtl.export.saved_run import SavedRun
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.registry.task_names import require_in_run, task_packages
from s3prl_mtl.upstreams.shared_encoder import InputKind, input_kind

logger = logging.getLogger(__name__)


def input_of(run: SavedRun, task: str) -> InputKind:
    """The input of a task: the weighted sum of layers (`features`), the hidden states of all layers
    without a weight, or the last one of its own masked audio (`masked`).

    Raises:
        UserError: the class of the task cannot be loaded.
    """
    block = run.checkpoint.config.get(task) or {}
    return input_kind(load_task(task, block.get("package"), folder=block.get("folder")))


def shared_weights(run: SavedRun, states: int) -> list[float]:
    """The weights of all hidden states in the features that the tasks of the run share; their sum
    is 1.

    Args:
        run: the run.
        states: number of hidden states of its encoder.
    """
    weights = run.layer_weights
    if weights is None:
        return _one_of(states, states - 1)
    found = torch.softmax(weights.double(), dim=0).tolist()
    return [0.0] * (states - len(found)) + found


def chosen_weights(run: SavedRun, options: Options, states: int) -> list[float]:
    """The weights of the hidden states in the output of a wrapper; their sum is 1.

    Args:
        run: the run.
        options: `layer` or `task`, or neither for the last hidden state.
        states: number of hidden states of the encoder.

    Raises:
        UserError: there is no such layer or task, or the task has no weighted sum.
    """
    if options.task is not None:
        packages = task_packages(run.checkpoint.config, run.checkpoint.tasks)
        task = require_in_run(options.task, packages, f"--task {options.task}, {run.path}")
        kind = input_of(run, task)
        if kind == "hidden_states":
            raise UserError(
                f"{task} takes the hidden states of all layers, which it combines itself.",
                where=f"--task {options.task}",
                fix="Choose one hidden state: --layer N.",
                code="not-supported",
            )
        return shared_weights(run, states) if kind == "features" else _one_of(states, states - 1)
    layer = states - 1 if options.layer is None else options.layer
    if not 0 <= layer < states:
        raise UserError(
            f"The encoder has the hidden states 0 to {states - 1}.",
            where=f"--layer {layer}",
            fix=f"For example --layer {states - 1}, the last one.",
            code="invalid-value",
        )
    return _one_of(states, layer)


def _one_of(states: int, index: int) -> list[float]:
    return [float(index == other) for other in range(states)]
