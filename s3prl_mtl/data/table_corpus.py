"""Corpus of own data: a table of utterances for each split."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from s3prl_mtl.data.corpus import Corpus, Finding
from s3prl_mtl.data.folders import Stamp, absolute, read_lines, record_reads, repeat_reads
from s3prl_mtl.data.table_formats import Row, files_of, seconds, table_path
from s3prl_mtl.data.tables import COMMON, Table, audio_path, read_table
from s3prl_mtl.data.utterance import Utterance
from s3prl_mtl.errors import UserError, nearest


class TableCorpus(Corpus):
    """Utterances from tables (:mod:`.tables`): CSV, JSON lines, Parquet, Kaldi, CutSet, data sets.

    A task defines :meth:`labels_of` and :meth:`label_space`, and names its columns.

    Args:
        manifests: the table of each split, by name; the first one trains.
        settings: others of the task, plain JSON.
    """

    title: ClassVar[str] = "tables"
    cacheable: ClassVar[bool] = True
    required: Sequence[str] = ()
    """Columns that every row needs, beside its audio."""
    optional: Sequence[str] = ()
    """Columns that the task uses where they are."""

    def __init__(self, manifests: Mapping[str, str | os.PathLike[str]], **settings: Any) -> None:
        self.manifests = files_by_split(
            manifests, f"{self.task}.downstream_expert.datarc.manifests"
        )
        self._tables: dict[str, tuple[Table, dict[str, Stamp]]] = {}
        super().__init__({"manifests": self.manifests, **settings})

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifests)

    def problems(self) -> list[str]:
        return [
            f"{self.task}: the table {path} of split {split!r} does not exist; set "
            f"`datarc.manifests.{split}`."
            for split, path in self.manifests.items()
            if not files_of(path)
        ]

    @abstractmethod
    def labels_of(self, row: Row) -> dict[str, Any]:
        """The labels of an utterance, plain JSON.

        Raises:
            UserError: a value is malformed; the place is `row.source`.
        """

    @classmethod
    @abstractmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of an utterance with such labels; the inverse of :meth:`labels_of`."""

    @classmethod
    def rows_of(cls, corpus: Corpus, split: str) -> list[dict[str, Any]]:
        """The rows of a table like a split of another corpus of the task."""
        return [
            {**common_columns(utterance, corpus), **cls.columns_of(utterance.labels)}
            for utterance in corpus.utterances(split)
        ]

    @classmethod
    def side_files(cls, corpus: Corpus, split: str) -> dict[str, str]:
        """The text of other files that the split needs, by the setting that names them."""
        return {}

    def table(self, split: str) -> Table:
        """The checked table of a split.

        Raises:
            UserError: as :func:`read_table`; a column or value is missing, a name is listed twice.
        """
        self.check_split(split)
        if split not in self._tables:
            with record_reads() as reads:
                table = read_table(self.manifests[split])
                if not {"path", "audio"} & set(table.columns):
                    table.require(["path"])
                table.require(self.required)
                self.check_rows(table)
            self._tables[split] = table, reads
        table, reads = self._tables[split]
        repeat_reads(reads)
        return table

    def check_rows(self, table: Table) -> None:
        """Check a table further than its `required` columns, once.

        Raises:
            UserError: a column or value is missing or wrong.
        """

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the tables, which loader workers do not need."""
        return {**vars(self), "_tables": {}}

    def utterances(self, split: str) -> list[Utterance]:
        table = self.table(split)
        folder = table.folder
        found: list[Utterance] = []
        sources: dict[str, str] = {}
        for row in table.rows:
            start = seconds(row.values.get("start", 0.0), row.source)
            duration = row.values.get("duration")
            path = audio_path(row, folder)
            whole = f"{path.stem}" if not start else f"{path.stem}-{start:g}"
            name = row.text("id") if "id" in row.values else whole
            if name in sources:
                raise UserError(
                    f"{self.task}: two rows have the name {name!r}.",
                    where=f"{sources[name]}; {row.source}",
                    fix="Give each row an `id` of its own.",
                    code="corpus-duplicates",
                )
            sources[name] = row.source
            found.append(
                Utterance(
                    name,
                    path,
                    self._with_speaker(self.labels_of(row), row),
                    start_seconds=start,
                    duration_seconds=None if duration is None else seconds(duration, row.source),
                    source=row.source,
                )
            )
        return found

    def _with_speaker(self, labels: dict[str, Any], row: Row) -> dict[str, Any]:
        if "speaker" in row.values:
            labels.setdefault("speaker", row.text("speaker"))
        return labels

    def findings(self, split: str) -> list[Finding]:
        """Columns that the task does not use."""
        table = self.table(split)
        known = {*COMMON, *self.required, *self.optional}
        unknown = [column for column in table.columns if column not in known]
        if not unknown:
            return []
        return [
            Finding(
                f"The columns {', '.join(map(repr, unknown))} of split {split!r} are not used by "
                f"{self.task}.",
                where=str(table.path),
                fix=nearest(unknown[0], sorted(known)),
                code="unknown-key",
            )
        ]

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return labels.get("speaker")

    def training_values(self, column: str) -> list[str]:
        """The different values of a column in the first split, sorted."""
        rows = self.table(self.splits[0]).rows
        return sorted({row.text(column) for row in rows})


def common_columns(utterance: Utterance, corpus: Corpus) -> dict[str, Any]:
    """The columns that the tables of all tasks have; `path` is absolute."""
    columns: dict[str, Any] = {"id": utterance.id, "path": str(utterance.path)}
    if utterance.start_seconds:
        columns["start"] = utterance.start_seconds
    if utterance.duration_seconds is not None:
        columns["duration"] = utterance.duration_seconds
    speaker = corpus.speaker(utterance.id, utterance.labels)
    return columns if speaker is None else {**columns, "speaker": speaker}


class ClassTable(TableCorpus):
    """Utterances of one class each: the column `label`.

    Args:
        manifests: the table of each split.
        classes: a file with a class a line, in the order of the outputs; None: those of the
            training table, sorted.
    """

    required: Sequence[str] = ("label",)
    column: ClassVar[str] = "label"

    def __init__(
        self,
        manifests: Mapping[str, str | os.PathLike[str]],
        classes: str | os.PathLike[str] | None = None,
    ) -> None:
        self.class_file = None if classes is None else absolute(classes)
        super().__init__(manifests, classes=self.class_file)

    def problems(self) -> list[str]:
        expected = "a file with a class a line"
        of_classes = (
            self.missing_file(self.class_file, expected, "classes") if self.class_file else []
        )
        return [*super().problems(), *of_classes]

    def labels_of(self, row: Row) -> dict[str, Any]:
        return {"class": row.text(self.column)}

    @classmethod
    def columns_of(cls, labels: Mapping[str, Any]) -> dict[str, Any]:
        return {cls.column: labels["class"]}

    def label_space(self) -> dict[str, Any]:
        return {"classes": listed_values(self.class_file) or self.training_values(self.column)}


def listed_values(path: Path | None) -> list[str]:
    """The lines of a file of classes; empty without a file.

    Raises:
        UserError: the file cannot be read or has no lines, or a class is listed twice.
    """
    if path is None:
        return []
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        name = line.strip()
        if name in lines:
            raise UserError(
                f"The class {name!r} is listed twice.",
                where=f"{path}, lines {lines[name]} and {number}",
                code="corpus-malformed",
            )
        lines[name] = number
    if not lines:
        raise UserError("The file of classes is empty.", where=str(path), code="corpus-empty")
    return list(lines)


def files_by_split(value: object, where: str) -> dict[str, Path]:
    """The absolute paths of a setting such as `manifests`.

    Args:
        value: {split: path}.
        where: the key of the setting, for errors.

    Raises:
        UserError: it is not of that form.
    """
    if not isinstance(value, Mapping) or not value:
        raise UserError(
            f"{where} must name a file for each split, not {value!r}.",
            where=where,
            fix="For example {train: train.csv, dev: dev.csv, test: test.csv}.",
            code="wrong-type",
        )
    for split, path in value.items():
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise UserError(
                f"{where}.{split} must be the path of one file or folder, not {path!r}.",
                where=f"{where}.{split}",
                code="wrong-type",
            )
    return {str(split): table_path(path) for split, path in value.items()}
