"""Which rank trains which tasks: chosen by the user, or from what a step of each task costs."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint.files import Checkpoint
from s3prl_mtl.config import Config
from s3prl_mtl.distributed.placement import (
    Placement,
    by_cost,
    by_hand,
    data_parallel,
    loads,
)
from s3prl_mtl.distributed.world import World
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.build import build_experts
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)

FILE_NAME = "placement.json"
MEASURED_STEPS = 3


def choose_placement(
    config: Config,
    world: World,
    saved: Checkpoint | None,
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    folder: Path,
) -> tuple[Placement, dict[str, float]]:
    """The placement that the config asks for.

    `distributed.placement` is taken as it is. `distributed.parallel: data` gives every rank a
    share of every task. `task` measures what a batch of each task costs, unless the checkpoint
    that the run goes on from has a placement for as many ranks.

    Returns:
        the placement, and what was measured: seconds for one batch of each task, else empty.

    Raises:
        UserError: the placement of the config does not fit the tasks or the ranks.
    """
    names = config["downstream"]
    text, parallel = config["distributed"]["placement"], config["distributed"]["parallel"]
    if text and saved is not None and "Placement" in saved:
        then = saved["Config"]["distributed"]["placement"]
        ranks = Placement.from_plain(saved["Placement"]).world_size
        if text == then and ranks != world.size:
            logger.warning(
                "The placement %r is for the %d ranks that the run had: it is not used for %d.",
                *(text, ranks, world.size),
            )
            text, parallel = None, "task"
    if text:
        return world.run_on_all_ranks(lambda: by_hand(text, names, world.size)), {}
    if parallel == "data" or world.size == 1:
        return data_parallel(names, world.size), {}
    if saved is not None and "Placement" in saved:
        before = Placement.from_plain(saved["Placement"])
        was_by_task = saved["Config"]["distributed"]["parallel"] == "task"
        same_tasks = list(before.shares) == list(names)
        if was_by_task and same_tasks and before.world_size == world.size:
            return before, {}
    costs = _measure_costs(config, world, saved, encoder, specaug, folder)
    return by_cost(costs, world.size), costs


def write_placement(
    placement: Placement, costs: Mapping[str, float], config: Config, folder: Path
) -> None:
    """Record in the run directory who trains what, and what that rests on."""
    path = folder / FILE_NAME
    if not costs and path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            known = {}
        if known.get("tasks") == placement.to_plain()["tasks"]:
            return  # it also says what was measured, and that is not measured again
    plain: dict[str, Any] = {"parallel": config["distributed"]["parallel"], **placement.to_plain()}
    if costs:
        plain["seconds_per_batch"] = dict(costs)
        plain["seconds_per_step"] = loads(placement, costs)
    replace_text(path, json.dumps(plain, indent=2) + "\n")


def _measure_costs(
    config: Config,
    world: World,
    saved: Checkpoint | None,
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    folder: Path,
) -> dict[str, float]:
    """Seconds that one batch of each task takes: reading, forward and backward pass.

    The ranks divide the tasks; each builds an expert, times a few batches and drops it.
    """
    own = config["downstream"][world.rank :: world.size]
    logger.info("Measuring what a batch of each task costs.")
    experts = world.run_on_all_ranks(
        lambda: build_experts(config, own, encoder.featurizer, folder, saved) if own else {}
    )
    costs = {}
    for name, expert in experts.items():
        task = Task.from_settings(
            name, expert.to(encoder.device), config[name], config["seed"], num_shares=world.size
        )
        with torch.random.fork_rng(), world.doing(f"measuring {name}"):
            costs[name] = _seconds_of_a_batch(task, encoder, specaug)
    del experts
    gathered: dict[str, float] = {}
    for part in world.all_gather(costs):
        gathered |= part
    return {name: gathered[name] for name in config["downstream"]}


def _seconds_of_a_batch(task: Task, encoder: SharedEncoder, specaug: SpecAugment | None) -> float:
    encoder.set_training(True)
    task.expert.train(True)
    seconds = []
    for _ in range(1 + MEASURED_STEPS):
        begun = time.perf_counter()
        batches = task.stream.next_round()
        losses = forward(
            batches, {task.name: task}, encoder, specaug, {task.name: defaultdict(list)}
        )
        for loss in losses:
            if loss.requires_grad:
                loss.backward()
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)
        seconds.append(time.perf_counter() - begun)
        _drop_gradients([encoder.upstream, encoder.featurizer, task.expert])
    # The first one warms up caches and starts the loader's workers.
    return statistics.median(seconds[1:])


def _drop_gradients(modules: Sequence[torch.nn.Module]) -> None:
    for module in modules:
        module.zero_grad(set_to_none=True)
