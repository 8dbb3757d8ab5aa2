"""All that a run needs to go on as if it had not been interrupted, gathered from its ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.checkpoint.contents import (
    OptimizerState,
    RunCheckpoint,
    TaskCheckpoint,
    TrainingState,
    parameter_names,
)
from s3prl_mtl.checkpoint.restore import restore_weights
from s3prl_mtl.config import Config
from s3prl_mtl.data.randomness import random_state, seed_all, set_random_state
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.placement import Placement
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)


class RunState:
    """Collects the state of a run from its ranks, and gives it back to them.

    What is saved does not depend on who held it: weights and the optimizer's state go by name, the
    place in the data is one of the whole epoch. Only the random generators are those of each rank.

    Args:
        config: with its references, as checkpoints keep it.
        world: all ranks.
        placement: which shares each of them reads.
        encoder: encoder and featurizer.
        tasks: those of this rank.
        optimizer, scheduler: of what this rank holds.
        skips: of the run.
        gradients: how the gradients of this rank travel.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        placement: Placement,
        encoder: SharedEncoder,
        tasks: Mapping[str, Task],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        skips: SkipCounts,
        gradients: GradientSum,
    ) -> None:
        self.config = config
        self.world = world
        self.placement = placement
        self.encoder = encoder
        self.tasks = tasks
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.skips = skips
        self.gradients = gradients

    def weights(
        self,
        step: int,
        tasks: Mapping[str, TaskCheckpoint],
        training: TrainingState | None = None,
    ) -> RunCheckpoint:
        """A checkpoint of the encoder, the featurizer and these tasks."""
        return RunCheckpoint.capture(
            self.config,
            step,
            self.skips.state_dict(),
            self.encoder.upstream,
            self.encoder.featurizer,
            tasks,
            training,
        )

    def collect(self, step: int, evaluated_step: int) -> RunCheckpoint | None:
        """The whole state on the first rank; None on the others. Every rank must call it.

        Args:
            step: steps taken.
            evaluated_step: the last one after which the dev splits were evaluated.
        """
        names = self._names()
        unused = self.gradients.unused
        optimizer = OptimizerState.capture(self.optimizer, names)
        # A head that several ranks hold comes from the first of them.
        led = [name for name in self.tasks if self.placement.ranks_of(name)[0] == self.world.rank]
        own = _RankState(
            random=random_state(),
            unused=None
            if unused is None
            else [name for name, parameter in names.items() if parameter in unused],
            tasks={name: TaskCheckpoint.capture(self.tasks[name].expert) for name in led},
            streams={name: self.tasks[name].stream.state_dict() for name in led},
            optimizer=_under(optimizer.state, [f"Tasks/{name}/" for name in led]),
        )
        gathered = self.world.gather(own)
        if gathered is None:
            return None
        tasks: dict[str, TaskCheckpoint] = {}
        streams: dict[str, dict[str, Any]] = {}
        state = _under(optimizer.state, ["Upstream/", "Featurizer/"])
        for part in gathered:
            tasks |= part.tasks
            streams |= part.streams
            state |= part.optimizer
        training = TrainingState(
            evaluated_step=evaluated_step,
            optimizer=OptimizerState(optimizer.settings, state),
            scheduler=self.scheduler.state_dict() if self.scheduler else None,
            placement=self.placement,
            streams=streams,
            unused=_union([part.unused for part in gathered]),
            random=[part.random for part in gathered],
        )
        return self.weights(step, {name: tasks[name] for name in self.placement.shares}, training)

    def restore_weights(self, saved: RunCheckpoint) -> None:
        """Load the weights and the counts of skipped steps.

        Raises:
            UserError: the weights do not fit.
        """
        restore_weights(saved, self.encoder.upstream, self.encoder.featurizer, self.tasks.values())
        self.skips.load_state_dict(saved.skips)

    def restore_rest(self, saved: RunCheckpoint) -> None:
        """Restore optimizer, schedule, positions in the data and random generators.

        Args:
            saved: a checkpoint with a training state.
        """
        training = saved.training
        assert training is not None, "checked by check_resume"
        names = self._names()
        training.optimizer.restore(self.optimizer, names)
        if self.scheduler is not None and training.scheduler is not None:
            self.scheduler.load_state_dict(training.scheduler)
        for name, task in self.tasks.items():
            task.stream.load_state_dict(training.streams[name])
        if training.unused is not None:
            self.gradients.know({names[name] for name in training.unused if name in names})
        before = training.placement
        places = {name: task.stream.state_dict() for name, task in self.tasks.items()}
        for sentence in changes(before, self.placement, training.streams, places):
            logger.warning("%s", sentence)
        if self.world.size == before.world_size:
            set_random_state(training.random[self.world.rank])
        else:
            # As many other draws as there are other ranks: none of the old ones is continued.
            seed = derived_seed("resumed", self.config["seed"], saved.step, self.world.rank)
            seed_all(seed)

    def _names(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by name, in its order."""
        return parameter_names(self.encoder.upstream, self.encoder.featurizer, self.tasks.values())


@dataclass(frozen=True)
class _RankState:
    """The part of a checkpoint that one rank contributes."""

    random: dict[str, Any]
    unused: list[str] | None
    tasks: dict[str, TaskCheckpoint]
    streams: dict[str, dict[str, Any]]
    optimizer: dict[str, dict[str, Any]]


def _under(state: Mapping[str, Any], prefixes: Iterable[str]) -> dict[str, Any]:
    """The entries whose names begin with one of the prefixes."""
    return {name: value for name, value in state.items() if name.startswith(tuple(prefixes))}


def _union(lists: list[list[str] | None]) -> list[str] | None:
    known = [names for names in lists if names is not None]
    return sorted({name for names in known for name in names}) if known else None


def changes(
    before: Placement,
    now: Placement,
    streams: Mapping[str, dict[str, Any]],
    places: Mapping[str, dict[str, Any]],
) -> list[str]:
    """What cannot be exact when a run goes on with other processes than it had; empty if nothing.

    Args:
        before: who read what when the checkpoint was saved.
        now: who does from here on.
        streams: where the streams of the tasks were in the checkpoint.
        places: where the streams of this rank's tasks go on.
    """
    sentences = []
    old, new = before.world_size, now.world_size
    if old != new:
        sentences.append(
            f"The run was trained by {_processes(old)} and goes on with {_processes(new)}: step, "
            "weights, optimizer, schedule and epochs are kept. A step now has "
            f"{new} instead of {old} batches of every task, and dropout and SpecAugment draw anew."
        )
    elif before != now:
        sentences.append(
            "The tasks are placed on other ranks than before: the batches go on as they were, but "
            "dropout and SpecAugment draw anew."
        )
    again, resized = {}, []
    for name, place in places.items():
        was = streams[name]
        had, has = (entry["round"] * entry["num_shares"] for entry in (was, place))
        if was["batch_size"] != place["batch_size"]:
            resized.append(f"{name} {was['batch_size']} to {place['batch_size']}")
            had *= was["batch_size"]
            has *= place["batch_size"]
        if had > has:
            again[name] = had - has
    if resized:
        sentences.append(
            f"Batches have another size than before: {', '.join(resized)}. The current epoch goes "
            "on after about as many utterances as it has had; where it is bucketed, utterances of "
            "it may come again or not at all."
        )
    elif again:
        listed = ", ".join(f"{name} {count}" for name, count in again.items())
        sentences.append(f"Batches of the current epoch that are drawn a second time: {listed}.")
    return sentences


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
