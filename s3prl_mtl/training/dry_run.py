"""One batch of every split, without an update: whether a run can start."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from itertools import islice

import torch

from s3prl_mtl.data.epoch_reader import EpochReader
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.forward import forward_pass
from s3prl_mtl.training.microbatch import MicroBatch, MicroBatcher
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.skips import SkipCounts
from s3prl_mtl.training.step import TrainingStep

logger = logging.getLogger(__name__)


def try_step(step: TrainingStep) -> None:
    """Run one batch of every share, without an update. The ranks do not wait for each other.

    A rank with all tasks also combines them; the state of the balancer stays as it is.

    Raises:
        UserError: the loss of a task, or the combined gradient, is not finite.
    """
    run, balancer = step.run, step.balancer

    def attempt(micro_batches: Sequence[MicroBatch], dropped: frozenset[str]) -> frozenset[str]:
        sync, records = step.begin(World(), dropped)
        for micro_batch in micro_batches:
            step.backward(forward_pass(run, micro_batch, sync, records), sync)
        sync.share_losses()
        if len(sync.losses) == len(run.names):
            balancer.combine(sync.losses, run.shared, run.heads)
        return dropped

    run.set_training(True)
    micro_batcher = MicroBatcher(World(), SkipCounts(run.names), step.micro_batcher.tasks)
    state = deepcopy(balancer.state_dict())
    dropped = micro_batcher.take(1, [step.loaders.draw()], attempt)
    broken = [block.name for block in run.blocks() if not block.has_finite_gradients]
    balancer.load_state_dict(state)
    step.optimizer.zero_grad(set_to_none=True)
    if dropped:
        names = " and of ".join(sorted(dropped))
        raise UserError(
            f"The loss of {names} is not finite in the first batch of training.",
            where=f"the training split of {names}",
            fix="Check the weights that training starts from (-k, -i), the settings and the "
            "corpus of the task.",
            code="non-finite",
        )
    if broken:
        names = ", ".join(broken)
        raise UserError(
            f"The gradient of {names} is not finite in the first batch of training.",
            where=f"the gradient of {names}",
            fix="Try another balancer or other options of it (--balancer), or check the "
            "weights that training starts from (-k, -i).",
            code="non-finite",
        )


@torch.no_grad()
def try_splits(run: Run, splits: Sequence[tuple[str, str]]) -> None:
    """Run encoder and head on one batch of each split of this rank's tasks.

    Raises:
        UserError: a split cannot be read, or its loss is not finite.
    """
    run.encoder.set_training(False)
    for name, split in splits:
        if name not in run.tasks:
            continue
        expert = run.tasks[name].expert
        expert.train(False)
        reader = EpochReader(name, expert, split, seed=run.seed, training=False)
        for batch in islice(reader, 1):
            features = run.encoder.inputs(expert, split, batch.wavs, batch.others)
            loss = expert(split, features, *batch.others, records=defaultdict(list))
            if isinstance(loss, torch.Tensor | float) and not math.isfinite(loss):
                raise UserError(
                    f"The loss of {name} is not finite in the first batch of {split}.",
                    where=f"split {split!r} of {name}",
                    fix="Check the weights (-k, -i) and the utterances of the split.",
                    code="non-finite",
                )
            logger.info("%s %s: passed", name, split)
