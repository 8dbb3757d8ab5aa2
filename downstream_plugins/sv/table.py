"""Own data for speaker verification: tables with the column `speaker`, and lists of trials."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from downstream_plugins.sv.corpus import (
    Trial,
    VoxCeleb1Verification,
    long_enough_trimmed,
    trial_findings,
)
from s3prl_mtl.data import Corpus, Finding, Row, TableCorpus, files_by_split, read_lines
from s3prl_mtl.errors import UserError


class VerificationTable(TableCorpus):
    """Utterances with their speakers. A split with trials is evaluated on these.

    A trial is a line `<0|1> <id> <id>`; ids are those of the split's table.

    Args:
        manifests: the table of each split.
        trials: the list of trials of each evaluated split; needed to evaluate it.
    """

    task: ClassVar[str] = "sv"
    required = ("speaker",)

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        trials: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        where = "sv.downstream_expert.datarc.trials"
        self.trial_files = {} if trials is None else files_by_split(trials, where)
        super().__init__(manifests, trials=self.trial_files)

    def problems(self) -> list[str]:
        problems = super().problems()
        for split, path in self.trial_files.items():
            expected = "a list of trials (`<0|1> <id> <id>` a line)"
            problems += self.missing_file(path, expected, f"trials.{split}")
        return problems

    def labels_of(self, row: Row) -> dict[str, Any]:
        return {"speaker": row.text("speaker")}

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {"speaker": labels["speaker"]}

    @classmethod
    def side_files(cls, corpus: Corpus, split: str) -> dict[str, str]:
        if split == corpus.splits[0] or not isinstance(corpus, VoxCeleb1Verification):
            return {}
        trials = corpus.trials(split)
        lines = [f"{trial.label} {trial.first_id} {trial.second_id}\n" for trial in trials]
        return {"trials": "".join(lines)}

    def label_space(self) -> dict[str, Any]:
        return {"speakers": self.training_values("speaker")}

    def content_check(self, split: str) -> Callable[[Tensor], bool] | None:
        return long_enough_trimmed if split == self.splits[0] else None

    def findings(self, split: str) -> list[Finding]:
        """Columns that are not used; trials that contradict the column `speaker` or repeat."""
        findings = super().findings(split)
        if split not in self.trial_files:
            return findings
        speakers = {u.id: u.labels["speaker"] for u in self.utterances(split)}
        return [*findings, *trial_findings(self.trials(split), split, speakers.__getitem__)]

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return []

    def may_share(self, first: str, second: str, labels: Mapping[str, Any]) -> bool:
        """Whether neither split is a test: as SUPERB's, trials of dev may be of training
        utterances."""
        return not (first.startswith("test") or second.startswith("test"))

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        if self.splits[0] not in (first, second) or self.may_share(first, second, {}):
            return "allowed"
        return "error"

    def trials(self, split: str) -> list[Trial]:
        """The trials of a split.

        Raises:
            UserError: the split has none, a line is malformed, or names an unknown utterance.
        """
        if split not in self.trial_files:
            raise UserError(
                f"sv: the split {split!r} has no trials.",
                where="sv.downstream_expert.datarc.trials",
                fix=f"Name its list: {{{split}: trials.txt}}.",
                code="corpus-unset",
            )
        path = self.trial_files[split]
        known = {utterance.id for utterance in self.utterances(split)}
        found = []
        for number, line in read_lines(path):
            fields = line.split()
            where = f"{path}, line {number}"
            if len(fields) != 3 or fields[0] not in ("0", "1"):
                raise UserError(
                    f"sv: {line.strip()!r} is not a trial.",
                    where=where,
                    fix="Each line is `<0|1> <id> <id>`.",
                    code="corpus-malformed",
                )
            for name in fields[1:]:
                if name not in known:
                    raise UserError(
                        f"sv: the table of split {split!r} has no utterance {name!r}.",
                        where=where,
                        fix="Trials have the values of the column `id`.",
                        code="corpus-inconsistent",
                    )
            found.append(Trial(int(fields[0]), fields[1], fields[2], where))
        return found
