"""Endless training batches of a task, which a checkpoint can leave and enter at any point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_mtl.data.epoch_reader import Batch, EpochReader, accepts_argument
from s3prl_mtl.errors import UserError

__all__ = ["TaskStream", "accepts_argument"]


class TaskStream:
    """The training batches of one expert, epoch after epoch.

    An epoch is a pure function of the seed and its number (:class:`EpochReader`), so that the
    place in it is all that a checkpoint needs.

    Args:
        task: its name, for errors.
        expert: has s3prl's `get_dataloader`.
        split: the training split.
        seed: of the run.
        shares: the shares of every epoch that this process reads.
        num_shares: shares that an epoch is cut into.
    """

    def __init__(
        self,
        task: str,
        expert: Any,
        split: str,
        *,
        seed: int,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> None:
        self.task = task
        self.expert = expert
        self.split = split
        self.seed = seed
        self.shares = tuple(shares)
        self.num_shares = num_shares
        datarc = getattr(expert, "datarc", None)
        size = datarc.get("train_batch_size") if isinstance(datarc, Mapping) else None
        self.batch_size = size if isinstance(size, int) and size > 0 else 1
        """Utterances in a batch, as far as the expert's settings say so."""
        self.epoch = 0
        self.round = 0
        """Rounds of the epoch that were drawn; each is one batch of every share."""
        self.epoch_batches = 0
        """Batches, over all shares, of the epoch last drawn from; 0 where the loader does not say.
        """
        self._reader: EpochReader | None = None

    def next_round(self) -> list[Batch]:
        """The next batch of each share; the next epoch begins by itself.

        Returns:
            fewer batches, or none, only where a stranger's epoch ends unevenly.

        Raises:
            UserError: the split has no batch at all.
        """
        while True:
            if self._reader is None:
                self._reader = EpochReader(
                    self.task,
                    self.expert,
                    self.split,
                    seed=self.seed,
                    epoch=self.epoch,
                    shares=self.shares,
                    num_shares=self.num_shares,
                    first_round=self.round,
                    training=True,
                )
                self.epoch_batches = self._reader.num_batches
            batches = self._reader.next_round()
            if batches is not None:
                break
            if self.round == 0:
                raise UserError(f"{self.task}: the split {self.split!r} has no utterances.")
            self._begin_next_epoch()
        self.round += 1
        if 0 < self.epoch_batches <= self.round * self.num_shares:
            # Now and not with the next batch: workers with nothing left to read take up memory.
            self._begin_next_epoch()
        return batches

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "round": self.round,
            "num_shares": self.num_shares,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        With another number of shares than then, some batches of the epoch may come again; none is
        left out. Where batches have another size, it goes on after no more utterances than the
        epoch has had.
        """
        self.epoch = state["epoch"]
        utterances = state["round"] * state["num_shares"] * state["batch_size"]
        self.round = utterances // (self.num_shares * self.batch_size)
        self._reader = None

    def _begin_next_epoch(self) -> None:
        self.epoch += 1
        self.round = 0
        self._reader = None
