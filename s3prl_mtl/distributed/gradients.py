"""Sum gradients over ranks in buckets, overlapped with the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s3prl_mtl.distributed.world import Group

BUCKET_BYTES = 25 * 2**20
"""Default bucket size, as in torch's DistributedDataParallel."""


class GradientSum:
    """Replace the gradient of every parameter by its sum over the ranks that hold the parameter.

    Each rank weights its losses by its fraction of the utterances, so that the sum is the gradient
    of all utterances together. Gradients are sent in buckets, in the expected order of the backward
    pass: the last layers first. A bucket is sent as soon as it and all earlier buckets are
    complete. Every rank sends the same buckets in the same order; parameters that its batches did
    not use contribute zeros.

    A parameter that no rank used has no gradient afterwards, as on one process: the optimizer
    skips it instead of applying weight decay.

    After the first step, parameters without a gradient on any rank are moved to the last buckets,
    so that they do not delay the others. The division into buckets affects rounding: a resumed run
    needs the `unused` of the run that wrote the checkpoint.

    Args:
        blocks: parameters, each block with the ranks that hold it; in the order of the forward
            pass, the same on all ranks that share a block.
        bucket_bytes: size at which a bucket is full.
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
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._next = 0
        self._active = False
        self._started = False
        self.unused: set[nn.Parameter] | None = None
        """Parameters without a gradient on any rank in the first step; None before it."""
        self._fill_buckets()
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def set_unused(self, unused: set[nn.Parameter] | None) -> None:
        """Divide the buckets as in a run with these unused parameters."""
        self.unused = unused
        self._fill_buckets()

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Send gradients during the last backward pass before :meth:`finish`."""
        self._start()
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def finish(self) -> None:
        """Send the remaining buckets, wait for all sums, and store them as gradients.

        Every rank must call this after the backward passes of a step, even without batches.
        """
        if not self._started:
            self._start()
        for bucket in self._buckets[self._next :]:
            bucket.send()
        self._started = False
        used = [self._used_anywhere(block) for block in self._blocks]
        for bucket in self._buckets:
            bucket.receive()
        for block, flags in zip(self._blocks, used, strict=True):
            for parameter, is_used in zip(block.parameters, flags, strict=True):
                if is_used:
                    self._bucket_of[parameter].write_gradient(parameter)
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

    def _start(self) -> None:
        self._started = True
        self._next = 0
        for bucket in self._buckets:
            bucket.reset()

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._active:
            return
        assert isinstance(parameter, nn.Parameter)
        self._bucket_of[parameter].read_gradient(parameter)
        while self._next < len(self._buckets) and self._buckets[self._next].is_full:
            self._buckets[self._next].send()
            self._next += 1

    def _used_anywhere(self, block: _Block) -> list[bool]:
        has = [parameter.grad is not None for parameter in block.parameters]
        return (block.group.sum(torch.tensor(has, dtype=torch.int32)) > 0).tolist()

    def _fill_buckets(self) -> None:
        self._buckets = []
        unused = self.unused or set()
        for is_used in (True, False):
            # Reverse of the forward pass: heads before the encoder.
            for block in reversed(self._blocks):
                order = reversed(block.parameters)
                self._add_buckets(block.group, [p for p in order if (p not in unused) is is_used])
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}

    def _add_buckets(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
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
    """Gradients that are sent together, concatenated in a flat tensor."""

    group: Group
    parameters: list[nn.Parameter]
    buffer: Tensor = field(init=False)
    views: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    copied: set[nn.Parameter] = field(default_factory=set)
    wait: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self.copied) == len(self.parameters)

    def __post_init__(self) -> None:
        # Allocate now, before the activations of a step fill the memory.
        like = self.parameters[0]
        sizes = [p.numel() for p in self.parameters]
        self.buffer = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
        pieces = self.buffer.split(sizes)
        self.views = {p: piece.view_as(p) for p, piece in zip(self.parameters, pieces, strict=True)}

    def reset(self) -> None:
        self.copied.clear()

    def read_gradient(self, parameter: nn.Parameter) -> None:
        """Copy a gradient into the bucket; a repeated call overwrites it."""
        assert parameter.grad is not None
        self.views[parameter].copy_(parameter.grad)
        self.copied.add(parameter)

    def send(self) -> None:
        for parameter in self.parameters:
            if parameter in self.copied:
                continue
            if parameter.grad is not None:
                self.read_gradient(parameter)
            else:
                self.views[parameter].zero_()
        self.wait = self.group.start_sum(self.buffer)

    def receive(self) -> None:
        assert self.wait is not None
        self.wait()
        self.wait = None

    def write_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = self.views[parameter].clone()
        else:
            parameter.grad.copy_(self.views[parameter])
