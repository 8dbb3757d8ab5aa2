"""Losses and gradients of single tasks beside the training, which leave the run as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.randomness import random_state, set_random_state
from s3prl_mtl.training.forward import forward
from s3prl_mtl.training.run import Run

Gradients = Sequence[Tensor | None]
"""Of each shared parameter; None for one that the loss does not use."""


@contextmanager
def unchanged(run: Run) -> Iterator[None]:
    """Restore random states and the buffers of all modules, such as statistics of batch norms."""
    modules = [run.encoder.upstream, run.encoder.featurizer]
    modules += [task.expert for task in run.tasks.values()]
    before = [{name: b.clone() for name, b in module.named_buffers()} for module in modules]
    state = random_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for module, buffers in zip(modules, before, strict=True):
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
        set_random_state(state)


def loss_of(run: Run, batches: Sequence[Batch], total: float) -> Tensor:
    """The summand of batches of one task in its mean loss over `total` utterances."""
    losses = forward(batches, run.tasks, run.encoder, run.specaug, defaultdict(_records))
    shares = [batch.utterances / total for batch in batches]
    return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()


def gradients_of(run: Run, loss: Tensor) -> Gradients:
    """The gradients of the shared parameters; not through `.grad`, whose hooks sum over ranks."""
    if not loss.requires_grad:
        return [None] * len(run.shared)
    return torch.autograd.grad(loss, run.shared, allow_unused=True)


def _records() -> dict[str, list[object]]:
    return defaultdict(list)
