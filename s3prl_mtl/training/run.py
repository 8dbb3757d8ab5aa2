"""The state of a run shared by training steps, evaluation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from s3prl_mtl.data.task_sampling import TasksOf, depends_on_sizes, task_sampling
from s3prl_mtl.distributed.shares import Placement
from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Block:
    """The parameters of one module.

    Args:
        name: of the module, for messages.
        group: the ranks that hold it.
        parameters: all of them, trained or frozen.
    """

    name: str
    group: Group
    parameters: list[nn.Parameter]

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters if parameter.requires_grad]

    @property
    def has_finite_gradients(self) -> bool:
        return all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.parameters)


@dataclass(kw_only=True)
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

    def task_sampling(self, rule: str) -> TasksOf:
        """The rule for the tasks of a step; counts training utterances if it depends on them.

        Every rank must call it.
        """
        sizes: dict[str, int | None] = dict.fromkeys(self.names)
        if depends_on_sizes(rule):
            own = {name: task.training_utterances() for name, task in self.tasks.items()}
            for part in self.world.all_gather(own):
                sizes |= part
        return self.world.run_on_all_ranks(
            lambda: task_sampling(rule, self.names, sizes, self.seed)
        )

    def blocks(self) -> list[Block]:
        """The encoder with its featurizer, then the heads of this rank."""
        encoder = [*self.encoder.upstream.parameters(), *self.encoder.featurizer.parameters()]
        heads = [
            Block(f"the head of {name}", self.groups[name], list(task.expert.parameters()))
            for name, task in self.tasks.items()
        ]
        return [Block("the encoder", self.world, encoder), *heads]

    @cached_property
    def shared(self) -> list[nn.Parameter]:
        """Trained parameters of the encoder and the featurizer."""
        return self.blocks()[0].trained

    @cached_property
    def heads(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of the heads of this rank, by task."""
        blocks = self.blocks()[1:]
        return {name: block.trained for name, block in zip(self.tasks, blocks, strict=True)}

    @cached_property
    def counted(self) -> list[nn.Parameter]:
        """Trained parameters of which this rank is the first holder: each is on one rank only."""
        return [p for block in self.blocks() if block.group.is_lead for p in block.trained]

    def trained_parameters(self, balancer: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that this rank trains, by names that are the same on all ranks."""
        modules = {
            "Upstream": self.encoder.upstream,
            "Featurizer": self.encoder.featurizer,
            **{f"Tasks/{name}": task.expert for name, task in self.tasks.items()},
            "Balancer": balancer,
        }
        return {
            f"{prefix}/{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
