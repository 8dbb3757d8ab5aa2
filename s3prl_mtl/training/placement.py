"""Choose a placement: given by the user, or balanced by the measured cost of each task."""

from __future__ import annotations

import json
import logging
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import RunConfig, resolve
from s3prl_mtl.distributed.shares import (
    Placement,
    balance_by_cost,
    data_parallel,
    loads,
    place_evenly,
)
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.registry.task_names import require_in_run
from s3prl_mtl.training.build import build_experts
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)

FILE_NAME = "placement.json"
MEASURED_STEPS = 3


def choose_placement(
    config: RunConfig,
    world: World,
    saved: RunCheckpoint | None,
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    folder: Path,
) -> tuple[Placement, dict[str, float]]:
    """Choose the placement according to the config.

    `distributed.placement` comes first. `distributed.parallel: data` gives every rank a share of
    every task. `task` measures the cost of a batch of each task, unless the checkpoint of a
    resumed run has a placement for as many ranks.

    Returns:
        the placement, and the measured seconds for one batch of each task; empty if not measured.

    Raises:
        UserError: the placement of the config does not fit the tasks or the ranks.
    """
    names = config.downstream
    text, parallel = config.distributed.placement, config.distributed.parallel
    if text and saved is not None and saved.training is not None:
        then = resolve(saved.config).distributed.placement
        ranks = saved.training.placement.world_size
        if text == then and ranks != world.size:
            logger.warning(
                "The placement %r was set for %d ranks; it is not used with %d.",
                *(text, ranks, world.size),
            )
            text, parallel = None, "task"
    if text:
        return world.run_on_all_ranks(lambda: parse_placement(text, names, world.size)), {}
    if parallel == "data" or world.size == 1:
        return data_parallel(names, world.size), {}
    if saved is not None and saved.training is not None:
        before = saved.training.placement
        was_by_task = resolve(saved.config).distributed.parallel == "task"
        same_tasks = list(before.shares) == list(names)
        if was_by_task and same_tasks and before.world_size == world.size:
            return before, {}
    costs = _measure_costs(config, world, saved, encoder, specaug, folder)
    return balance_by_cost(costs, world.size), costs


def write_placement(
    placement: Placement, costs: Mapping[str, float], config: RunConfig, folder: Path
) -> None:
    """Write `placement.json`: the shares of each rank, and the measured costs."""
    path = folder / FILE_NAME
    if not costs and path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            known = {}
        if known.get("tasks") == placement.to_plain()["tasks"]:
            return  # Keep the file, which also has the measured costs.
    plain: dict[str, Any] = {"parallel": config.distributed.parallel, **placement.to_plain()}
    if costs:
        plain["seconds_per_batch"] = dict(costs)
        plain["seconds_per_step"] = loads(placement, costs)
    replace_text(path, json.dumps(plain, indent=2) + "\n")


def _measure_costs(
    config: RunConfig,
    world: World,
    saved: RunCheckpoint | None,
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    folder: Path,
) -> dict[str, float]:
    """Seconds for one batch of each task: reading, forward and backward pass.

    The ranks share the tasks; each builds an expert, times a few batches and deletes it.
    """
    own = config.downstream[world.rank :: world.size]
    logger.info("Measuring the cost of a batch of each task.")
    experts = world.run_on_all_ranks(
        lambda: (
            build_experts(config, own, encoder.upstream, encoder.featurizer, folder, saved)
            if own
            else {}
        )
    )
    costs = {}
    for name, expert in experts.items():
        task = Task.from_settings(
            name, expert.to(encoder.device), config.tasks[name], config.seed, num_shares=world.size
        )
        with torch.random.fork_rng(), world.doing(f"measuring {name}"):
            costs[name] = _seconds_of_a_batch(task, encoder, specaug)
    del experts
    gathered: dict[str, float] = {}
    for part in world.all_gather(costs):
        gathered |= part
    return {name: gathered[name] for name in config.downstream}


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
    # The first batch fills caches and starts the workers of the loader.
    return statistics.median(seconds[1:])


def _drop_gradients(modules: Sequence[torch.nn.Module]) -> None:
    for module in modules:
        module.zero_grad(set_to_none=True)


def parse_placement(text: str, tasks: Sequence[str], world_size: int) -> Placement:
    """Parse `--placement`, for example `0:asr;1:pr,ks`.

    A task of several ranks is divided evenly among them; if this is not possible, the lowest
    ranks read one more share.

    Args:
        text: `rank:task,task;rank:task`. Names of tasks may contain a colon.
        tasks: the tasks of the run, in its order.
        world_size: the number of ranks.

    Raises:
        UserError: a malformed text; a rank or task is unknown, named twice or missing.
    """
    ranks: dict[str, list[int]] = {task: [] for task in tasks}
    named: set[int] = set()
    for entry in text.split(";"):
        rank, words = _parse_entry(entry, text)
        if rank >= world_size:
            numbers = "only rank 0" if world_size == 1 else f"ranks 0 to {world_size - 1}"
            raise _invalid(f"There is no rank {rank}: this run has {numbers}.")
        if rank in named:
            raise _invalid(
                f"Rank {rank} is named twice.", f"Name all its tasks at once: {rank}:task,task."
            )
        named.add(rank)
        for word in words:
            # `asv` is `sv` in the run.
            task = require_in_run(word, dict.fromkeys(tasks), "--placement")
            if rank in ranks[task]:
                raise _invalid(f"Rank {rank} has task {task!r} twice.")
            ranks[task].append(rank)
    missing = [task for task in tasks if not ranks[task]]
    if missing:
        raise _invalid(
            f"No rank has {_join(missing)}.",
            "Give a rank to every task of -d, or leave the task out of -d.",
        )
    idle = [str(rank) for rank in range(world_size) if rank not in named]
    if idle:
        raise _invalid(
            f"Rank {_join(idle)} of {world_size} has no task.",
            "Give it a task, which other ranks may have too, or start fewer processes.",
        )
    return place_evenly(ranks, world_size)


def _parse_entry(entry: str, text: str) -> tuple[int, list[str]]:
    number, colon, names = entry.partition(":")
    words = [word.strip() for word in names.split(",")]
    if not colon or not re.fullmatch(r"[0-9]{1,9}", number.strip()) or not all(words):
        part = f" The part {entry.strip()!r} is not." if ";" in text else ""
        raise _invalid(
            f"{text!r} is not of the form rank:task,task;rank:task.{part}",
            "For example 0:asr;1:pr,ks puts asr on rank 0, and pr and ks on rank 1.",
        )
    return int(number), words


def _invalid(what: str, fix: str | None = None) -> UserError:
    return UserError(what, where="--placement", fix=fix, code="invalid-value")


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
