"""All that a run needs to go on as if it had not been interrupted, gathered from its ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s3prl_mtl.checkpoint import contents as snapshot
from s3prl_mtl.checkpoint.files import Checkpoint
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

    def weights(self, step: int, heads: Mapping[str, dict[str, Any]]) -> Checkpoint:
        """The encoder, the featurizer and these heads: what evaluates their tasks."""
        return snapshot.weights(
            self.config,
            step,
            self.skips.state_dict(),
            self.encoder.upstream,
            self.encoder.featurizer,
            heads,
        )

    def collect(self, step: int, evaluated_step: int) -> Checkpoint | None:
        """The whole state on the first rank; None on the others. Every rank must call it.

        Args:
            step: steps taken.
            evaluated_step: the last one after which the dev splits were evaluated.
        """
        unused = self.gradients.unused
        own: dict[str, Any] = {
            "Random": random_state(),
            "Unused": None
            if unused is None
            else [name for name, parameter in self._names().items() if parameter in unused],
            # A head that several ranks hold comes from the first of them.
            "Tasks": {
                name: {
                    **snapshot.head_entry(task),
                    "Stream": task.stream.state_dict(),
                    "Optimizer": self._optimizer_state([task])["State"],
                }
                for name, task in self.tasks.items()
                if self.placement.ranks_of(name)[0] == self.world.rank
            },
        }
        gathered = self.world.gather(own)
        if gathered is None:
            return None
        tasks: dict[str, Any] = {}
        for part in gathered:
            tasks |= part["Tasks"]
        tasks = {name: tasks[name] for name in self.placement.shares}
        optimizer = self._optimizer_state([])
        for entry in tasks.values():
            optimizer["State"] |= entry.pop("Optimizer")
        return {
            **self.weights(step, tasks),
            "EvaluatedStep": evaluated_step,
            "Optimizer": optimizer,
            "Scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "Placement": self.placement.to_plain(),
            "Unused": _union([part["Unused"] for part in gathered]),
            "Random": [part["Random"] for part in gathered],
        }

    def restore_weights(self, saved: Checkpoint) -> None:
        """Take over the weights.

        Raises:
            UserError: they do not fit.
        """
        snapshot.restore_weights(
            saved, self.encoder.upstream, self.encoder.featurizer, self.tasks.values()
        )
        self.skips.load_state_dict(saved["Tallies"])

    def restore_rest(self, saved: Checkpoint) -> None:
        """Put optimizer, schedule, batches and all chance where the checkpoint left them."""
        snapshot.load_optimizer_state(self.optimizer, self._names(), saved["Optimizer"])
        if self.scheduler is not None and saved["Scheduler"] is not None:
            self.scheduler.load_state_dict(saved["Scheduler"])
        for name, task in self.tasks.items():
            task.stream.load_state_dict(saved["Tasks"][name]["Stream"])
        if saved["Unused"] is not None:
            names = self._names()
            self.gradients.know({names[name] for name in saved["Unused"] if name in names})
        before = Placement.from_plain(saved["Placement"])
        places = {name: task.stream.state_dict() for name, task in self.tasks.items()}
        for sentence in changes(before, self.placement, saved, places):
            logger.warning("%s", sentence)
        if self.world.size == before.world_size:
            set_random_state(saved["Random"][self.world.rank])
        else:
            # As many other draws as there are other ranks: none of the old ones is continued.
            seed = derived_seed("resumed", self.config["seed"], saved["Step"], self.world.rank)
            seed_all(seed)

    def _names(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by name, in its order."""
        return snapshot.parameter_names(
            self.encoder.upstream, self.encoder.featurizer, self.tasks.values()
        )

    def _optimizer_state(self, tasks: list[Task]) -> dict[str, Any]:
        """The optimizer's state of a task's head; without one, of encoder and featurizer."""
        whole = snapshot.optimizer_state(self.optimizer, self._names())
        prefixes = tuple(f"Tasks/{task.name}/" for task in tasks) or ("Upstream/", "Featurizer/")
        state = {name: value for name, value in whole["State"].items() if name.startswith(prefixes)}
        return {"Settings": whole["Settings"], "State": state}


def _union(lists: list[list[str] | None]) -> list[str] | None:
    known = [names for names in lists if names is not None]
    return sorted({name for names in known for name in names}) if known else None


def changes(
    before: Placement, now: Placement, saved: Checkpoint, places: Mapping[str, dict[str, Any]]
) -> list[str]:
    """What cannot be exact when a run goes on with other processes than it had; empty if nothing.

    Args:
        before: who read what when the checkpoint was saved.
        now: who does from here on.
        saved: the checkpoint.
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
        was = saved["Tasks"][name]["Stream"]
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
