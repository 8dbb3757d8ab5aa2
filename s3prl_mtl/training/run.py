"""The state of a run shared by training steps, evaluation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from s3prl_mtl.distributed.shares import Placement
from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder


def _never() -> bool:
    return False


@dataclass
class Run:
    """A run on one rank.

    Args:
        names: all tasks of the run, the same on all ranks.
        seed: of the run.
        world: all ranks.
        placement: the shares of every task that each rank reads.
        groups: for each task of this rank the ranks that share it.
        encoder: encoder and featurizer.
        tasks: those of this rank, by name.
        specaug: applied to the features of every task in training, or None.
        stop_asked: whether this rank was asked to stop.

    Attributes:
        step: training steps taken.
        skips: counts of skipped steps and dropped tasks.
    """

    names: Sequence[str]
    seed: int
    world: World
    placement: Placement
    groups: Mapping[str, Group]
    encoder: SharedEncoder
    tasks: Mapping[str, Task]
    specaug: SpecAugment | None = None
    stop_asked: Callable[[], bool] = _never
    step: int = 0
    skips: SkipCounts = field(init=False)

    def __post_init__(self) -> None:
        self.skips = SkipCounts(self.names)

    def set_training(self, training: bool) -> None:
        """Set encoder, featurizer and heads to training or evaluation mode."""
        self.encoder.set_training(training)
        for task in self.tasks.values():
            task.expert.train(training)

    def parameters(self) -> Iterator[tuple[str, Group, list[nn.Parameter]]]:
        """For each module of this rank: its name, the ranks that hold it, its parameters."""
        encoder = [*self.encoder.upstream.parameters(), *self.encoder.featurizer.parameters()]
        yield "the encoder", self.world, encoder
        for name, task in self.tasks.items():
            yield f"the head of {name}", self.groups[name], list(task.expert.parameters())
