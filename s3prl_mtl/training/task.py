"""An expert in a run: its splits, its training batches, its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s3prl_mtl.config import TaskConfig
from s3prl_mtl.data.epoch_reader import accepts_argument
from s3prl_mtl.data.streams import TaskStream
from s3prl_mtl.nn import to_cpu
from s3prl_mtl.tasks.base import TaskExpert

Records = dict[str, list[Any]]
"""What the `forward` calls of an expert have recorded, by key."""


@dataclass
class Task:
    """One expert in a run, its training batches, and its records since the last log.

    `train_split` is empty for a task that is only evaluated.
    """

    name: str
    expert: Any
    stream: TaskStream
    train_split: str
    dev_splits: list[str]
    test_splits: list[str]
    records: Records = field(default_factory=lambda: defaultdict(list))
    batch_ids: list[int] = field(default_factory=list)
    takes_batch_id: bool = False

    def keep(self, records: Mapping[str, list[Any]], batch_ids: Iterable[int]) -> None:
        """Add the records of a step, and the numbers of its batches."""
        extend_records(self.records, records)
        self.batch_ids.extend(batch_ids)

    def training_utterances(self) -> int | None:
        """Utterances of an epoch; None for a task with a loader of its own."""
        source = getattr(self.expert, "batch_source", None)
        found = source(self.train_split) if source is not None else None
        return len(found.cuts) if found is not None else None

    def take_records(self) -> tuple[Records, list[int]]:
        """The records since the last call, on the CPU, and the numbers of their batches."""
        taken = to_cpu(self.records), self.batch_ids
        self.records, self.batch_ids = defaultdict(list), []
        return taken

    @classmethod
    def from_settings(
        cls,
        name: str,
        expert: Any,
        settings: TaskConfig,
        seed: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> Task:
        """The task of an expert, with the splits that its block of the config names.

        The first of the dev splits is the one that selects the best checkpoint.

        Args:
            name: of the task.
            expert: of the task.
            settings: the task's block of the config.
            seed: of the run.
            shares: the shares of the training data that this rank reads.
            num_shares: number of shares of the training data.
        """
        train_split = settings.train_split or ""
        dev_splits = list(settings.dev_splits or [getattr(expert, "dev_split", "dev")])
        if isinstance(expert, TaskExpert):
            expert.train_split, expert.dev_split = train_split, dev_splits[0]
        return cls(
            name=name,
            expert=expert,
            stream=TaskStream(
                name, expert, train_split, seed=seed, shares=shares, num_shares=num_shares
            ),
            train_split=train_split,
            dev_splits=dev_splits,
            takes_batch_id=accepts_argument(expert.forward, "batch_id"),
            test_splits=list(
                [getattr(expert, "test_split", "test")]
                if settings.test_splits is None
                else settings.test_splits
            ),
        )


def merge_records(
    parts: Iterable[tuple[Mapping[str, list[Any]], list[int]]],
) -> tuple[Records, list[int]]:
    """Join the records of an expert from several ranks, and the numbers of their batches."""
    records: Records = defaultdict(list)
    batch_ids: list[int] = []
    for part, numbers in parts:
        extend_records(records, part)
        batch_ids += numbers
    return records, batch_ids


def extend_records(records: Records, more: Mapping[str, list[Any]]) -> None:
    """Append to an expert's records."""
    for key, values in more.items():
        if isinstance(values, list):
            records[key].extend(values)
        else:  # not in s3prl's contract, but some experts record a running value
            records[key] = values
