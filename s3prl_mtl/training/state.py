"""Collect the state of a run from its ranks, and restore it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from s3prl_mtl.checkpoint.contents import (
    OptimizerState,
    RunCheckpoint,
    TaskCheckpoint,
    TrainingState,
    on_cpu,
)
from s3prl_mtl.checkpoint.restore import restore_weights
from s3prl_mtl.config import Config
from s3prl_mtl.data.randomness import random_state, seed_all, set_random_state
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.shares import Placement
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.step import TrainingStep

logger = logging.getLogger(__name__)


class RunState:
    """Collect the state of a run from its ranks, and restore it.

    The saved state does not depend on the placement: weights and optimizer state are stored by
    name, positions in the data refer to the whole epoch. Only random states are stored by rank.

    Args:
        config: with unresolved references, as stored in checkpoints.
        run: the run.
        step: holds optimizer, schedule, balancer, and the division into micro-batches.
    """

    def __init__(self, config: Config, run: Run, step: TrainingStep) -> None:
        self.config = config
        self.run = run
        self.step = step

    def weights(
        self, tasks: Mapping[str, TaskCheckpoint], training: TrainingState | None = None
    ) -> RunCheckpoint:
        """A checkpoint of the encoder, the featurizer and these tasks."""
        run = self.run
        return RunCheckpoint.capture(
            self.config,
            run.step,
            run.skips.state_dict(),
            run.encoder.upstream,
            run.encoder.featurizer,
            tasks,
            training,
        )

    def collect(self, evaluated_step: int) -> RunCheckpoint | None:
        """The whole state on the first rank; None on the others. Every rank must call it.

        Args:
            evaluated_step: the last step after which the dev splits were evaluated.
        """
        run, step, names = self.run, self.step, self._names()
        optimizer = OptimizerState.capture(step.optimizer, names)
        unused = step.gradients.unused
        # The first rank of a shared head provides it.
        led = {
            name: task
            for name, task in run.tasks.items()
            if run.placement.ranks_of(name)[0] == run.world.rank
        }
        own = _RankState(
            tasks={name: TaskCheckpoint.capture(task.expert) for name, task in led.items()},
            streams={name: task.stream.state_dict() for name, task in led.items()},
            optimizer=_named(optimizer.state, *(f"Tasks/{name}/" for name in led)),
            unused=[name for name, parameter in names.items() if parameter in (unused or ())],
            random=random_state(),
        )
        gathered = run.world.gather(own)
        if gathered is None:
            return None
        tasks: dict[str, TaskCheckpoint] = {}
        streams: dict[str, dict[str, Any]] = {}
        state = _named(optimizer.state, "Upstream/", "Featurizer/", "Balancer/")
        for part in gathered:
            tasks |= part.tasks
            streams |= part.streams
            state |= part.optimizer
        training = TrainingState(
            evaluated_step=evaluated_step,
            optimizer=OptimizerState(optimizer.groups, state),
            scheduler=step.scheduler.state_dict() if step.scheduler else None,
            placement=run.placement,
            streams=streams,
            # None on all ranks or on none.
            unused=None
            if unused is None
            else sorted({name for part in gathered for name in part.unused}),
            random=[part.random for part in gathered],
            balancer=on_cpu(step.balancer.state_dict()),
            micro_batches=step.micro_batcher.state_dict(),
        )
        return self.weights({name: tasks[name] for name in run.placement.shares}, training)

    def restore_weights(self, saved: RunCheckpoint) -> None:
        """Load the weights of encoder, featurizer and heads, and the counts of skipped steps.

        Raises:
            UserError: they do not fit.
        """
        run = self.run
        experts = {name: task.expert for name, task in run.tasks.items()}
        restore_weights(saved, run.encoder.upstream, run.encoder.featurizer, experts)
        run.skips.load_state_dict(saved.skips)

    def restore_training(self, saved: TrainingState) -> None:
        """Restore optimizer, schedule, balancer, data positions and random state."""
        run, step, names = self.run, self.step, self._names()
        saved.optimizer.restore(step.optimizer, names)
        if step.scheduler is not None and saved.scheduler is not None:
            step.scheduler.load_state_dict(saved.scheduler)
        for name, task in run.tasks.items():
            task.stream.load_state_dict(saved.streams[name])
        if saved.unused is not None:
            step.gradients.set_unused({names[name] for name in saved.unused if name in names})
        if saved.balancer:
            step.balancer.load_state_dict(saved.balancer)
        if saved.micro_batches is not None:
            step.micro_batcher.load_state_dict(saved.micro_batches)
        streams = {name: task.stream.state_dict() for name, task in run.tasks.items()}
        warn_of_changes(saved.placement, run.placement, saved.streams, streams)
        if run.world.size == saved.placement.world_size:
            set_random_state(saved.random[run.world.rank])
        else:
            # With another number of ranks, use new random states.
            seed_all(derived_seed("resumed", run.seed, run.step, run.world.rank))

    def _names(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by name."""
        return self.run.trained_parameters(self.step.balancer)


@dataclass(frozen=True)
class _RankState:
    """The part of a checkpoint that one rank contributes."""

    tasks: dict[str, TaskCheckpoint]
    streams: dict[str, dict[str, Any]]
    optimizer: dict[str, dict[str, Any]]
    unused: list[str]
    random: dict[str, Any]


def _named(state: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """The entries of parameters whose names begin with one of the prefixes."""
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def warn_of_changes(
    before: Placement,
    now: Placement,
    old_streams: Mapping[str, dict[str, Any]],
    new_streams: Mapping[str, dict[str, Any]],
) -> None:
    """Warn about differences of processes, placement or batches in a resumed run.

    Args:
        before: placement when the checkpoint was saved.
        now: placement of the resumed run.
        old_streams: positions of the tasks in their data when the checkpoint was saved.
        new_streams: positions from which the tasks of this rank continue.
    """
    old, new = before.world_size, now.world_size
    if old != new:
        logger.warning(
            "Resuming a run of %d processes with %d: step, weights, optimizer, schedule and epochs "
            "are kept. A step now has %d instead of %d batches of every task; dropout and "
            "SpecAugment draw other numbers.",
            *(old, new, new, old),
        )
    elif before != now:
        logger.warning(
            "The placement of the tasks has changed: batches are the same, but dropout and "
            "SpecAugment draw other numbers."
        )
    repeated, resized = {}, []
    for name, place in new_streams.items():
        was = old_streams[name]
        had, has = (entry["round"] * entry["num_shares"] for entry in (was, place))
        if was["batch_size"] != place["batch_size"]:
            resized.append(f"{name} {was['batch_size']} to {place['batch_size']}")
            had *= was["batch_size"]
            has *= place["batch_size"]
        if had > has:
            repeated[name] = had - has
    if resized:
        logger.warning(
            "The batch size has changed: %s. The current epoch continues after about as many "
            "utterances; where it is bucketed, some may be repeated or skipped.",
            ", ".join(resized),
        )
    elif repeated:
        logger.warning(
            "Repeated batches of the current epoch: %s.",
            ", ".join(f"{name} {count}" for name, count in repeated.items()),
        )
