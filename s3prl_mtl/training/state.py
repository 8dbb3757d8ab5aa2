"""Collect the state of a run from its ranks, and restore it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_mtl.balancing import Balancer
from s3prl_mtl.checkpoint import contents
from s3prl_mtl.checkpoint.files import Checkpoint
from s3prl_mtl.config import Config
from s3prl_mtl.data.randomness import random_state, seed_all, set_random_state
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.placement import Placement
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.step import TrainingStep

logger = logging.getLogger(__name__)


class RunState:
    """Collects the state of a run from its ranks, and gives it back to them.

    What is saved does not depend on who held it: weights and the optimizer's state go by name, the
    place in the data is one of the whole epoch. Only the random generators are those of each rank.

    Args:
        config: with its references, as checkpoints keep it.
        run: the run.
        step: holds optimizer, schedule, balancer, and the division into micro-batches.
    """

    def __init__(self, config: Config, run: Run, step: TrainingStep) -> None:
        self.config = config
        self.run = run
        self.step = step

    def weights(self, heads: Mapping[str, dict[str, Any]]) -> Checkpoint:
        """The encoder, the featurizer and these heads: what evaluates their tasks."""
        run = self.run
        return contents.weights(
            self.config,
            run.step,
            run.skips.state_dict(),
            run.encoder.upstream,
            run.encoder.featurizer,
            heads,
        )

    def collect(self, evaluated_step: int) -> Checkpoint | None:
        """The whole state on the first rank; None on the others. Every rank must call it.

        Args:
            evaluated_step: the last step after which the dev splits were evaluated.
        """
        run, step = self.run, self.step
        unused = step.gradients.unused
        own: dict[str, Any] = {
            "Random": random_state(),
            "Unused": None
            if unused is None
            else [name for name, parameter in self._names().items() if parameter in unused],
            # A head that several ranks hold comes from the first of them.
            "Tasks": {
                name: {
                    **contents.head_entry(task),
                    "Stream": task.stream.state_dict(),
                    "Optimizer": self._optimizer_state(name)["State"],
                }
                for name, task in run.tasks.items()
                if run.placement.ranks_of(name)[0] == run.world.rank
            },
        }
        gathered = run.world.gather(own)
        if gathered is None:
            return None
        tasks: dict[str, Any] = {}
        for part in gathered:
            tasks |= part["Tasks"]
        tasks = {name: tasks[name] for name in run.placement.shares}
        optimizer = self._optimizer_state(None)
        for entry in tasks.values():
            optimizer["State"] |= entry.pop("Optimizer")
        return {
            **self.weights(tasks),
            "EvaluatedStep": evaluated_step,
            "Optimizer": optimizer,
            "Scheduler": step.scheduler.state_dict() if step.scheduler else None,
            "Balancer": contents.on_cpu(step.balancer.state_dict()),
            "MicroBatches": step.micro_batcher.state_dict(),
            "Placement": run.placement.to_plain(),
            "Unused": _union([part["Unused"] for part in gathered]),
            "Random": [part["Random"] for part in gathered],
        }

    def restore_weights(self, saved: Checkpoint) -> None:
        """Load the weights of encoder, featurizer and heads.

        Raises:
            UserError: they do not fit.
        """
        encoder = self.run.encoder
        contents.restore_weights(
            saved, encoder.upstream, encoder.featurizer, self.run.tasks.values()
        )
        self.run.skips.load_state_dict(saved["Tallies"])

    def restore_training(self, saved: Checkpoint) -> None:
        """Restore optimizer, schedule, balancer, the place in the data and the random state."""
        run, step = self.run, self.step
        contents.load_optimizer_state(step.optimizer, self._names(), saved["Optimizer"])
        if step.scheduler is not None and saved["Scheduler"] is not None:
            step.scheduler.load_state_dict(saved["Scheduler"])
        for name, task in run.tasks.items():
            task.stream.load_state_dict(saved["Tasks"][name]["Stream"])
        if saved["Unused"] is not None:
            names = self._names()
            step.gradients.set_unused({names[name] for name in saved["Unused"] if name in names})
        # Checkpoints of earlier versions have no entries for these.
        if saved.get("Balancer"):
            step.balancer.load_state_dict(saved["Balancer"])
        if "MicroBatches" in saved:
            step.micro_batcher.load_state_dict(saved["MicroBatches"])
        before = Placement.from_plain(saved["Placement"])
        places = {name: task.stream.state_dict() for name, task in run.tasks.items()}
        for sentence in changes(before, run.placement, saved, places):
            logger.warning("%s", sentence)
        if run.world.size == before.world_size:
            set_random_state(saved["Random"][run.world.rank])
        else:
            # As many other draws as there are other ranks: none of the old ones is continued.
            seed_all(derived_seed("resumed", run.seed, saved["Step"], run.world.rank))

    def _names(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by name, in its order."""
        return trained_parameters(self.run, self.step.balancer)

    def _optimizer_state(self, task: str | None) -> dict[str, Any]:
        """The optimizer's state of a task's head; None: of all that every rank holds."""
        whole = contents.optimizer_state(self.step.optimizer, self._names())
        prefixes = (
            ("Upstream/", "Featurizer/", "Balancer/") if task is None else (f"Tasks/{task}/",)
        )
        state = {name: value for name, value in whole["State"].items() if name.startswith(prefixes)}
        return {"Settings": whole["Settings"], "State": state}


def trained_parameters(run: Run, balancer: Balancer) -> dict[str, nn.Parameter]:
    """The parameters that this rank trains, by names that are the same on all ranks."""
    names = contents.parameter_names(
        run.encoder.upstream, run.encoder.featurizer, run.tasks.values()
    )
    return names | {f"Balancer/{name}": p for name, p in balancer.named_parameters()}


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
