"""One expert's place in a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from s3prl_mtl.expert import TaskExpert
from s3prl_mtl.streams import TaskStream, accepts_argument


@dataclass
class Task:
    """One expert in a run, its training batches, and its records since the last log."""

    name: str
    expert: Any
    stream: TaskStream
    train_split: str
    dev_splits: list[str]
    test_splits: list[str]
    records: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    batch_ids: list[int] = field(default_factory=list)
    takes_batch_id: bool = False

    def take_records(self) -> tuple[dict[str, list[Any]], list[int]]:
        """The records since this was last called, and the numbers of the batches they are of."""
        taken = self.records, self.batch_ids
        self.records, self.batch_ids = defaultdict(list), []
        return taken

    @classmethod
    def from_settings(cls, name: str, expert: Any, settings: Mapping[str, Any]) -> Task:
        """The task of an expert, with the splits that its block of the config names.

        The first of the dev splits is the one that selects the best checkpoint.
        """
        train_split = settings["train_split"]
        dev_splits = list(settings["dev_splits"] or [getattr(expert, "dev_split", "dev")])
        if isinstance(expert, TaskExpert):
            expert.train_split, expert.dev_split = train_split, dev_splits[0]
        return cls(
            name=name,
            expert=expert,
            stream=TaskStream(name, expert, train_split),
            train_split=train_split,
            dev_splits=dev_splits,
            takes_batch_id=accepts_argument(expert.forward, "batch_id"),
            test_splits=list(settings["test_splits"] or [getattr(expert, "test_split", "test")]),
        )
