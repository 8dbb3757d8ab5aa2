"""Gradients added up over the ranks, while the backward pass still goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s3prl_mtl.distributed.world import Group

BUCKET_BYTES = 25 * 2**20
"""As large as torch's DistributedDataParallel makes them."""


class GradientSum:
    """Replaces the gradient of every parameter by its sum over the ranks that hold the parameter.

    A rank weighs its losses by its part of the utterances, so that the sum is the gradient of all
    utterances together. Gradients travel in buckets, in the order in which the backward pass is
    expected to finish them: the last layers first. A bucket leaves as soon as it and those before
    it are complete; every rank sends the same buckets in the same order, also those to which it
    has nothing to add because its batches did not use the parameters.

    A parameter that no rank used has no gradient afterwards, as on one process: the optimizer
    leaves it alone instead of decaying it.

    Args:
        blocks: parameters, each block with the ranks that hold it; in the order of the forward
            pass, the same on all ranks that share a block.
        bucket_bytes: when a bucket is full.

    Which parameters never get a gradient is found out in the first step, and they then travel last,
    so that they do not hold up the others. How sums round depends on who travels with whom: a run
    that goes on from a checkpoint has to be given `unused` of the run that wrote it.
    """

    def __init__(
        self,
        blocks: Iterable[tuple[Group, Iterable[nn.Parameter]]],
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._blocks = [
            _Block(group, [p for p in parameters if p.requires_grad])
            for group, parameters in blocks
            if group.size > 1
        ]
        self._blocks = [block for block in self._blocks if block.parameters]
        self._bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._home: dict[nn.Parameter, _Bucket] = {}
        self._next = 0
        self._active = False
        self._begun = False
        self.unused: set[nn.Parameter] | None = None
        """Those without a gradient on any rank in the first step; None before it."""
        self._fill_buckets()
        for parameter in self._home:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def set_unused(self, unused: set[nn.Parameter] | None) -> None:
        """Travel as in the run that found these to be without a gradient."""
        self.unused = unused
        self._fill_buckets()

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """The last backward pass before :meth:`finish`: gradients leave as they are completed."""
        self._begin()
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def finish(self) -> None:
        """Send what has not left yet, wait for all sums, and make them the gradients.

        Call it on every rank after every backward pass that counts, whether or not this rank had
        anything to do in it.
        """
        if not self._begun:
            self._begin()
        for bucket in self._buckets[self._next :]:
            bucket.send()
        self._begun = False
        used = [self._used_anywhere(block) for block in self._blocks]
        for bucket in self._buckets:
            bucket.receive()
        for block, flags in zip(self._blocks, used, strict=True):
            for parameter, is_used in zip(block.parameters, flags, strict=True):
                if is_used:
                    self._home[parameter].give(parameter)
                else:
                    parameter.grad = None
        if self.unused is None:
            self.unused = {
                parameter
                for block, flags in zip(self._blocks, used, strict=True)
                for parameter, is_used in zip(block.parameters, flags, strict=True)
                if not is_used
            }
            self._fill_buckets()

    def _begin(self) -> None:
        self._begun = True
        self._next = 0
        for bucket in self._buckets:
            bucket.empty()

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._active:
            return
        assert isinstance(parameter, nn.Parameter)
        self._home[parameter].take(parameter)
        while self._next < len(self._buckets) and self._buckets[self._next].is_full:
            self._buckets[self._next].send()
            self._next += 1

    def _used_anywhere(self, block: _Block) -> list[bool]:
        has = [parameter.grad is not None for parameter in block.parameters]
        return (block.group.sum(torch.tensor(has, dtype=torch.int32)) > 0).tolist()

    def _fill_buckets(self) -> None:
        self._buckets = []
        unused = self.unused or set()
        for wanted in (True, False):
            # Heads come after the encoder in the forward pass, so first in the backward one.
            for block in reversed(self._blocks):
                order = reversed(block.parameters)
                self._cut(block.group, [p for p in order if (p not in unused) is wanted])
        self._home = {p: bucket for bucket in self._buckets for p in bucket.parameters}

    def _cut(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
        held: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            other_kind = held and (
                held[0].dtype != parameter.dtype or held[0].device != parameter.device
            )
            if held and (size >= self._bucket_bytes or other_kind):
                self._buckets.append(_Bucket(group, held))
                held, size = [], 0
            held.append(parameter)
            size += parameter.numel() * parameter.element_size()
        if held:
            self._buckets.append(_Bucket(group, held))


@dataclass
class _Block:
    group: Group
    parameters: list[nn.Parameter]


@dataclass
class _Bucket:
    """Gradients that travel together, one after the other in a flat tensor."""

    group: Group
    parameters: list[nn.Parameter]
    buffer: Tensor = field(init=False)
    views: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    taken: set[nn.Parameter] = field(default_factory=set)
    wait: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self.taken) == len(self.parameters)

    def __post_init__(self) -> None:
        # Now, while memory is not full of what a step computes.
        like = self.parameters[0]
        sizes = [p.numel() for p in self.parameters]
        self.buffer = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
        pieces = self.buffer.split(sizes)
        self.views = {p: piece.view_as(p) for p, piece in zip(self.parameters, pieces, strict=True)}

    def empty(self) -> None:
        self.taken.clear()

    def take(self, parameter: nn.Parameter) -> None:
        """Copy a gradient; the later one, should it come twice."""
        assert parameter.grad is not None
        self.views[parameter].copy_(parameter.grad)
        self.taken.add(parameter)

    def send(self) -> None:
        for parameter in self.parameters:
            if parameter in self.taken:
                continue
            if parameter.grad is not None:
                self.take(parameter)
            else:
                self.views[parameter].zero_()
        self.wait = self.group.start_sum(self.buffer)

    def receive(self) -> None:
        assert self.wait is not None
        self.wait()
        self.wait = None

    def give(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = self.views[parameter].clone()
        else:
            parameter.grad.copy_(self.views[parameter])
