"""The outcome of a step over several ranks."""

from __future__ import annotations

import torch

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.microbatch import MicroBatch
from s3prl_mtl.training.sync_step import StepSync


class Summing(World):
    """Adds the messages of another rank, given in their order, and keeps those of this one."""

    def __init__(self, others: list[torch.Tensor]) -> None:
        super().__init__()
        self.others = list(others)
        self.own: list[torch.Tensor] = []

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.own.append(values.clone())
        return values.add_(self.others.pop(0)) if self.others else values


def share(world: World, lengths: list[list[int]]) -> StepSync:
    """Share the losses of one micro-batch for each list of lengths in samples."""
    sync = StepSync(world, ["ks", "er"], draws=1, dropped=())
    batches = [Batch("ks", n, [torch.zeros(k) for k in own], []) for n, own in enumerate(lengths)]
    for batch in batches:
        sync.share_losses(MicroBatch([batch], batches), [torch.tensor(1.0)], stop=False)
    return sync


def test_samples_are_summed_over_ranks_and_micro_batches():
    other = Summing([])
    assert share(other, [[100], [2000, 1]]).samples == 2101
    assert share(Summing(other.own), [[16_000, 8_000], [3]]).samples == 2101 + 24_003
