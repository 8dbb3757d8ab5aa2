"""Endless stream of the training batches of a task, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_mtl.data.batching import BatchSource
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.data.sampling import Draw
from s3prl_mtl.errors import UserError


@dataclass(frozen=True)
class Round:
    """A round of a stream that can be read apart from it: one batch of every share.

    Args:
        task: name of the task.
        epoch: its epoch.
        number: of the round in the epoch.
        epoch_batches: batches of the epoch over all shares.
        draws: those of each batch.
    """

    task: str
    epoch: int
    number: int
    epoch_batches: int
    draws: list[list[Draw]]


class TaskStream:
    """The training batches of one expert, epoch after epoch.

    An epoch is a pure function of the seed and its number (:class:`EpochReader`), so a checkpoint
    only needs the position in it. The batches are read by the expert's own loader (`next_round`),
    or, with those of other tasks, ahead of the position (`ahead`, `take`; :mod:`.pool`).

    Args:
        task: name of the task, for errors.
        expert: object with s3prl's `get_dataloader`.
        split: the training split.
        seed: seed of the run.
        shares: the shares of every epoch that this process reads.
        num_shares: number of shares of an epoch.
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
        own = datarc if isinstance(datarc, Mapping) else {}
        size = own.get("train_batch_size") if own.get("train_batch_seconds") is None else None
        self.batch_size = size if isinstance(size, int) and size > 0 else 1
        """Utterances per batch according to the settings of the expert; 1 if it differs or is
        unknown."""
        self.epoch = 0
        self.round = 0
        """Rounds read in this epoch; a round is one batch of every share."""
        self.epoch_batches = 0
        """Batches of the current epoch over all shares; 0 if the loader has no length."""
        self._reader: EpochReader | None = None

    def next_round(self) -> list[Batch]:
        """The next batch of each share; starts the next epoch as needed.

        Returns:
            One batch per share; fewer or none if the epoch of a third-party loader ends within the
            round.

        Raises:
            UserError: the split has no batches.
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
                raise UserError(
                    f"{self.task}: the split {self.split!r} has no utterances.",
                    where=f"split {self.split!r} of {self.task}",
                    fix="Check that the corpus is complete.",
                    code="corpus-empty",
                )
            self._begin_next_epoch()
        self._count_round()
        return batches

    def ahead(self, source: BatchSource) -> Iterator[Round]:
        """The rounds from this position on, without end; the position stays.

        Args:
            source: of the training split.

        Raises:
            UserError: the source has no such position, or no batch.
        """
        epoch, first = self.epoch, self.round
        width = len(self.shares)
        while True:
            skipped = first * width
            plan, epoch_batches = source.plan(epoch, self.shares, self.num_shares, skipped)
            for start in range(0, len(plan), width):
                draws = [plan[place] for place in range(start, start + width)]
                yield Round(self.task, epoch, first + start // width, epoch_batches, draws)
            epoch, first = epoch + 1, 0

    def take(self, read: Round, items: Sequence[tuple[Any, ...]]) -> list[Batch]:
        """Continue after a round of :meth:`ahead`.

        Args:
            read: the next round.
            items: the contents of its batches.

        Returns:
            the batches, as :meth:`next_round` returns them.
        """
        self.epoch, self.round, self.epoch_batches = read.epoch, read.number, read.epoch_batches
        first = read.number * self.num_shares
        batches = [
            Batch(self.task, first + share, list(wavs), others)
            for share, (wavs, *others) in zip(self.shares, items, strict=True)
        ]
        self._count_round()
        return batches

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "round": self.round,
            "num_shares": self.num_shares,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position of a `state_dict`.

        With another number of shares or batch size, the position is rounded down: some utterances
        of the epoch may be repeated, none is skipped.
        """
        self.epoch = state["epoch"]
        utterances = state["round"] * state["num_shares"] * state["batch_size"]
        self.round = utterances // (self.num_shares * self.batch_size)
        self._reader = None

    def _count_round(self) -> None:
        self.round += 1
        if 0 < self.epoch_batches <= self.round * self.num_shares:
            # Not deferred to the next call: idle workers would keep their memory.
            self._begin_next_epoch()

    def _begin_next_epoch(self) -> None:
        self.epoch += 1
        self.round = 0
        self._reader = None
