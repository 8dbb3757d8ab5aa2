"""Endless training batches of a task, which a checkpoint can leave and enter at any point."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch

from s3prl_mtl.errors import UserError


class TaskStream:
    """The training batches of one expert, epoch after epoch.

    The experts of this package order an epoch by its number alone and can begin it anywhere. A
    stranger's loader draws its order from torch's generator when it is iterated, so the state of
    the generator at the beginning of the epoch is kept, and the batches that were had are read
    again and dropped.

    Args:
        task: its name, for errors.
        expert: has s3prl's `get_dataloader`.
        split: the training split.
    """

    def __init__(self, task: str, expert: Any, split: str) -> None:
        self.task = task
        self.expert = expert
        self.split = split
        self.epoch = 0
        self.batch = 0
        self.epoch_batches = 0
        """Batches of the current epoch; 0 where the loader does not say."""
        self._epoch_random = torch.get_rng_state()
        self._iterator: Iterator[Any] | None = None
        self._takes_epoch = accepts_argument(expert.get_dataloader, "epoch")
        self._takes_skip = "skip_batches" in inspect.signature(expert.get_dataloader).parameters

    def next_batch(self) -> tuple[list[Any], list[Any]]:
        """The waveforms of the next batch, and what else its loader gives.

        Raises:
            UserError: the split has no batch at all.
        """
        if self._iterator is None:
            self._begin(skip=0)
        assert self._iterator is not None
        batch = next(self._iterator, None)
        if batch is None:
            if self.batch == 0:
                raise UserError(f"{self.task}: the split {self.split!r} has no utterances.")
            self.epoch += 1
            self.batch = 0
            self._iterator = None
            return self.next_batch()
        self.batch += 1
        wavs, *others = batch
        return list(wavs), others

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.batch, "random": self._epoch_random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Draws from torch's generator: restore it after."""
        self.epoch = state["epoch"]
        self.batch = state["batch"]
        if self.batch == 0:
            # The epoch has not begun: it will, with the random state of that moment.
            self._iterator = None
            return
        torch.set_rng_state(state["random"].cpu())
        self._begin(skip=self.batch)

    def _begin(self, skip: int) -> None:
        self._epoch_random = torch.get_rng_state()
        arguments: dict[str, int] = {"epoch": self.epoch} if self._takes_epoch else {}
        if self._takes_skip:
            arguments["skip_batches"] = skip
        loader = self.expert.get_dataloader(self.split, **arguments)
        iterator = iter(loader)
        left = len(loader) if isinstance(loader, Sized) else 0
        self.epoch_batches = left + skip if self._takes_skip else left
        if not self._takes_skip:
            # Now and not when the next batch is drawn: the loader draws from torch's generator.
            for _ in itertools.islice(iterator, skip):
                pass
        self._iterator = iterator


def accepts_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with a keyword argument of that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
