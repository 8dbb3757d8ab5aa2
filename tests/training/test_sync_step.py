"""The outcome of a step over several ranks."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training import sync_step
from s3prl_mtl.training.microbatch import MicroBatch, TasksDropped
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
        sync.share_counts(MicroBatch([batch], batches), [torch.tensor(1.0)], stop=False)
    return sync


def test_samples_are_summed_over_ranks_and_micro_batches():
    other = Summing([])
    assert share(other, [[100], [2000, 1]]).samples == 2101
    assert share(Summing(other.own), [[16_000, 8_000], [3]]).samples == 2101 + 24_003


def batch(task: str, utterances: int) -> Batch:
    return Batch(task, 0, [torch.zeros(5)] * utterances, [])


def test_losses_are_means_over_ranks_and_draws():
    def step(world: World, losses: list[float], utterances: list[int]) -> StepSync:
        sync = StepSync(world, ["ks", "er"], draws=2, dropped={"er"})
        for loss, number in zip(losses, utterances, strict=True):
            draw = [batch("ks", number), batch("er", 1)]
            micro_batch = MicroBatch(draw, draw)
            assert sync.batches_of(micro_batch) == draw[:1]
            sync.share_counts(micro_batch, [torch.tensor(loss)], stop=False)
        sync.share_losses()
        return sync

    other = Summing([])
    assert step(other, [1.0, 5.0], [2, 1]).losses == {"ks": 3.0}
    both = step(Summing(other.own), [4.0, 5.0], [1, 3])
    assert both.losses == {"ks": ((2 * 1.0 + 4.0) / 3 + 5.0) / 2}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_found_after_the_backward_passes(value: float):
    sync = StepSync(World(), ["ks", "er", "sv"], draws=1, dropped={"sv"})
    draw = [batch("ks", 1), batch("er", 1)]
    losses = [torch.tensor(1.0, requires_grad=True), torch.tensor(value, requires_grad=True)]
    assert sync.share_counts(MicroBatch(draw, draw), losses, stop=False).keys() == {"ks", "er"}
    with pytest.raises(TasksDropped) as caught:
        sync.share_losses()
    assert caught.value.tasks == {"er", "sv"}


def test_the_backward_pass_can_begin_before_the_losses_are_known(monkeypatch: pytest.MonkeyPatch):
    """Tensors of the device `meta` have no values."""
    monkeypatch.setattr(sync_step, "start_to_cpu", lambda tensor: lambda: torch.tensor([2.0, 4.0]))
    sync = StepSync(World(), ["ks"], draws=1, dropped=())
    draw = [batch("ks", 1), batch("ks", 3)]
    losses = [torch.zeros((), device="meta", requires_grad=True) for _ in draw]
    sync.share_counts(MicroBatch(draw, draw), losses, stop=False)["ks"].backward()
    assert all(loss.grad is not None for loss in losses) and not sync.losses
    sync.share_losses()
    assert sync.losses == {"ks": 3.5}
