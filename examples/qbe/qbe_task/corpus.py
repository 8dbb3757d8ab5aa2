"""QUESST 2014: spoken queries, and spoken documents to search.

Layout::

    Audio/quesst14_*.wav  dev_queries/quesst14_dev_*.wav  eval_queries/quesst14_eval_*.wav   (8 kHz)
    scoring/language_key_{utterances,dev,eval}.lst     lines `<folder>/Audio/<name>.wav <language>`
    scoring/groundtruth_quesst14_{dev,eval}/quesst14_{dev,eval}.rttm
        NIST's format: `LEXEME <document> <channel> <begin> <duration> <query> ...`

Languages are albanian, basque, czech, nnenglish, romanian and slovak; the ground truth covers all
of them. Other files in `scoring` (MediaEval's program, lists of terms and audio in XML, folders
with the ground truth by query type T1 to T3) are not read.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from s3prl_mtl.data import Corpus, Utterance, absolute, read_lines
from s3prl_mtl.errors import UserError

PARTS = {"dev": "dev", "test": "eval"}
"""QUESST's names of the splits."""
QUERIES, STATISTICS = "-queries", "-statistics"
_TERM_FIELD = 5
_NO_TERM = "NO_KEYWORD"


class Quesst14(Corpus):
    """The Query by Example Search on Speech Task of MediaEval 2014.

    `dev` and `test` contain the same documents; `dev-queries` and `test-queries` the queries;
    `dev-statistics` and `test-statistics` some evenly spaced documents. Labels: `kind`, one of
    document, query, statistics. The label space is empty.

    Args:
        root: the folder `quesst14Database`.
        language: as in the lists of languages; None for all.
        statistics_documents: maximum number of documents in the splits `-statistics`.
    """

    title: ClassVar[str] = "QUESST 2014"
    task: ClassVar[str] = "qbe"
    splits: tuple[str, ...] = tuple(
        part + suffix for part in PARTS for suffix in ("", QUERIES, STATISTICS)
    )

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        language: str | None = None,
        statistics_documents: int = 200,
    ) -> None:
        self.root = absolute(root)
        self.language = language
        self.statistics_documents = statistics_documents
        super().__init__(
            {
                "root": self.root,
                "language": language,
                "statistics_documents": statistics_documents,
            }
        )

    def problems(self) -> list[str]:
        missing = self.missing_folder(self.root, f"the unpacked {self.title}", "root")
        if missing:
            return missing
        lists = [self.language_key(part) for part in ("utterances", *PARTS.values())]
        expected = "a list of audio files and their languages"
        found = [p for path in lists for p in self.missing_file(path, expected, "root")]
        for split in PARTS:
            folder = self.truth_folder(split)
            found += self.missing_folder(folder, "the ground truth, *.rttm", "root")
        return found

    def language_key(self, part: str) -> Path:
        return self.root / "scoring" / f"language_key_{part}.lst"

    def truth_folder(self, split: str) -> Path:
        return self.root / "scoring" / f"groundtruth_quesst14_{PARTS[split]}"

    def utterances(self, split: str) -> list[Utterance]:
        """The documents or queries of a split, in the order of their list.

        Raises:
            UserError: unknown split, or a list is missing or malformed.
        """
        self.check_split(split)
        part, dash, kind = split.partition("-")
        if kind == "queries":
            return self._listed(PARTS[part], "query")
        documents = self._listed("utterances", kind or "document")
        if not dash or len(documents) <= self.statistics_documents:
            return documents
        count = self.statistics_documents
        return [documents[len(documents) * i // count] for i in range(count)]

    def all_documents(self) -> list[str]:
        """The names of the documents of all languages."""
        return [name.stem for name, _ in self._lines("utterances")]

    def _listed(self, part: str, kind: str) -> list[Utterance]:
        found = [
            Utterance(inside.stem, self.root / inside, {"kind": kind})
            for inside, language in self._lines(part)
            if self.language is None or language == self.language
        ]
        if not found:
            path = self.language_key(part)
            raise UserError(
                f"qbe: {path.name} lists nothing in {self.language!r}.",
                where=str(path),
                fix="Set qbe's `datarc.language` to a language of the list, or to null.",
                code="corpus-empty",
            )
        return found

    def _lines(self, part: str) -> list[tuple[PurePosixPath, str]]:
        """The audio files of a list, relative to the database, and their languages."""
        path = self.language_key(part)
        found = []
        for number, line in read_lines(path):
            fields = line.split()
            if len(fields) != 2 or "/" not in fields[0]:
                raise UserError(
                    f"qbe: {line.strip()!r} is not a file and its language.",
                    where=f"{path}, line {number}",
                    fix="Each line is `<folder>/<folder>/<name>.wav <language>`.",
                    code="corpus-malformed",
                )
            # The first folder is that of the database, under its original name.
            found.append((PurePosixPath(fields[0].partition("/")[2]), fields[1]))
        return found

    def matches(self, split: str) -> set[tuple[str, str]]:
        """The pairs (query, document) in all languages in which the document contains the query.

        Args:
            split: dev or test.

        Raises:
            UserError: the ground truth is missing or malformed.
        """
        files = sorted(self.truth_folder(split).glob("*.rttm"))
        if not files:
            raise UserError(
                "qbe: the ground truth is missing.",
                where=f"{self.truth_folder(split)}/*.rttm",
                fix="It is in the folder `scoring` of the archive of QUESST 2014.",
                code="corpus-malformed",
            )
        pairs = set()
        for path in files:
            for number, line in read_lines(path):
                fields = line.split()
                if fields[0] != "LEXEME":
                    continue
                if len(fields) <= _TERM_FIELD:
                    raise UserError(
                        f"qbe: {line.strip()!r} does not name the query in the document.",
                        where=f"{path}, line {number}",
                        fix="LEXEME <document> <channel> <begin> <duration> <query>",
                        code="corpus-malformed",
                    )
                if fields[_TERM_FIELD] != _NO_TERM:
                    pairs.add((fields[_TERM_FIELD], fields[1]))
        return pairs

    def label_space(self) -> dict[str, Any]:
        return {}
