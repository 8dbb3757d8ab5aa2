"""Intent classification: the action, object and location of a spoken command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from downstream_plugins.ic.corpus import SLOTS, FluentSpeechCommands
from s3prl_mtl import ClassificationExpert
from s3prl_mtl.data import Row, TableCorpus


class IntentTable(TableCorpus):
    """Own data: a column for each slot.

    Args:
        manifests: the table of each split.
        slots: the columns.
    """

    task = "ic"

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        slots: Sequence[str] = SLOTS,
    ) -> None:
        self.required = tuple(slots)
        super().__init__(manifests, slots=list(slots))

    def labels_of(self, row: Row) -> dict[str, Any]:
        return {slot: row.text(slot) for slot in self.required}

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return dict(labels)

    def label_space(self) -> dict[str, Any]:
        """The values of each slot in the training table, sorted."""
        return {slot: self.training_values(slot) for slot in self.required}

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return [f"{slot} {labels[slot]}" for slot in self.required]

    def declared_classes(self) -> list[str]:
        space = self.label_space()
        return [f"{slot} {value}" for slot in self.required for value in space[slot]]


class IntentClassification(ClassificationExpert):
    """SUPERB's `ic`: an intent is correct if its action, object and location all are."""

    name = "ic"
    corpus_type = FluentSpeechCommands
    dev_split = "valid"
    table_type = IntentTable
    questions: ClassVar[Mapping[str, str]] = {slot: slot for slot in SLOTS}

    def build_head(self) -> None:
        if self.labels and set(SLOTS) != set(self.labels):  # slots of own data
            self.questions = {slot: slot for slot in self.labels}  # type: ignore[misc]
        super().build_head()
