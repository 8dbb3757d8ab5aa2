"""Report of a corpus: counts of each split, and findings that make training or scores wrong.

Compares the splits with each other, and the corpus with the numbers of its publication. Reads the
columns of manifests only: the scan of a split has already looked at the audio (:mod:`.scanning`).
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s3prl_mtl.data.corpus import Corpus, Finding, Official
from s3prl_mtl.data.corpus_cache import cached
from s3prl_mtl.data.manifest import Manifest
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

MAXIMUM_SHARED = 0.01
"""Largest fraction of an evaluated split that may be in another split; more is an error."""

SMALL = 0.1
"""A split with a smaller fraction of the published utterances is small on purpose."""
COMPLETE = 0.995
"""A split with a larger fraction of the published size is complete."""

_SMALLEST_OVERLAP = 0.01  # seconds
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class SplitCounts:
    """The size of a split.

    Args:
        split: its name.
        utterances: number of usable utterances.
        hours: of audio.
        speakers: number of speakers; None if the corpus does not say who speaks.
        classes: number of classes in its labels; None if the labels are not classes.
        official: the published size, if known.
    """

    split: str
    utterances: int
    hours: float
    speakers: int | None
    classes: int | None
    official: Official | None

    def __str__(self) -> str:
        text = f"{self.split}: {size_text(self)}"
        return text if self.official is None else f"{text} (published: {size_text(self.official)})"


def size_text(counts: SplitCounts | Official) -> str:
    """A size, such as `2703 utterances, 5.4 h, 40 speakers`."""
    parts = [] if counts.utterances is None else [f"{counts.utterances} utterances"]
    parts += [] if counts.hours is None else [f"{counts.hours:.1f} h"]
    parts += [] if counts.speakers is None else [f"{counts.speakers} speakers"]
    parts += [] if counts.classes is None else [f"{counts.classes} classes"]
    return ", ".join(parts)


@dataclass(frozen=True)
class CorpusSizes:
    """The name of a corpus and the sizes of its splits."""

    title: str
    splits: Sequence[SplitCounts]

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> CorpusSizes:
        """Build an object from the output of `dataclasses.asdict`."""

        def counts(split: Mapping[str, Any]) -> SplitCounts:
            official = split["official"]
            return SplitCounts(**{**split, "official": official and Official(**official)})

        return cls(content["title"], [counts(split) for split in content["splits"]])


@dataclass(frozen=True)
class CorpusReport:
    """Counts of the splits of a corpus, findings (errors first), and where its files are."""

    corpus: Corpus
    splits: Sequence[SplitCounts]
    findings: Sequence[Finding]
    notes: Sequence[str] = ()

    @property
    def sizes(self) -> CorpusSizes:
        return CorpusSizes(self.corpus.title, self.splits)

    def mistakes(self) -> list[UserError]:
        """The findings that are errors."""
        return [
            UserError(f"{self.corpus.task}: {f.what}", where=f.where, fix=f.fix, code=f.code)
            for f in self.findings
            if f.certain
        ]

    def log(self) -> None:
        """Log notes and counts of every split, and a warning for each finding that is no error."""
        for note in self.notes:
            logger.info("%s: %s", self.corpus.task, note)
        for counts in self.splits:
            logger.info("%s %s", self.corpus.task, counts)
        for finding in self.findings:
            if not finding.certain:
                logger.warning("%s: %s", self.corpus.task, finding)


@dataclass(frozen=True)
class _Split:
    """The speakers and classes of the utterances of a split, with their numbers of utterances."""

    name: str
    manifest: Manifest
    speakers: Counter[str]
    classes: Counter[str]

    @classmethod
    def of(cls, corpus: Corpus, name: str, manifest: Manifest) -> _Split:
        speakers: Counter[str] = Counter()
        classes: Counter[str] = Counter()
        for utterance_id, labels in zip(manifest.ids(), manifest.labels(), strict=True):
            speaker = corpus.speaker(utterance_id, labels)
            if speaker is not None:
                speakers[speaker] += 1
            classes.update(corpus.classes(labels))
        return cls(name, manifest, speakers, classes)

    def __len__(self) -> int:
        return len(self.manifest)


def report_corpus(
    corpus: Corpus,
    manifests: Mapping[str, Manifest],
    more: Sequence[Finding] = (),
    trained: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> CorpusReport:
    """Compare the splits of a corpus with each other and with its publication.

    Args:
        corpus: the corpus.
        manifests: utterances by split, the training split first.
        more: findings of the task, to be added.
        trained: whether the first split is the training split.
        cache_dir: as in :func:`s3prl_mtl.data.load_cuts`.
    """

    def read_folders() -> tuple[list[dict[str, Any]], list[str]]:
        found = [asdict(finding) for split in manifests for finding in corpus.findings(split)]
        return found, corpus.notes()

    of_folders, notes = cached(corpus, cache_dir, f"report {', '.join(manifests)}", read_folders)
    splits = [_Split.of(corpus, name, manifest) for name, manifest in manifests.items()]
    counts = [_count(corpus, split) for split in splits]
    findings = [*more, *(Finding(**fields) for fields in of_folders)]
    findings += _partial_splits(counts)
    for split in splits:
        findings += _repeated_audio(split)
    for first, second in combinations(splits, 2):
        findings += _shared_utterances(corpus, first, second)
        findings += _shared_speakers(corpus, first, second)
    if trained:
        findings += _untrained_classes(corpus, splits)
    # Arrow keeps freed memory, and a run does not need it again.
    pa.default_memory_pool().release_unused()
    findings.sort(key=lambda finding: not finding.certain)
    return CorpusReport(corpus, counts, findings, notes)


def _count(corpus: Corpus, split: _Split) -> SplitCounts:
    return SplitCounts(
        split.name,
        len(split),
        float(split.manifest.durations.sum()) / 3600,
        len(split.speakers) or None,
        len(split.classes) or None,
        corpus.official(split.name),
    )


def _partial_splits(counts: Sequence[SplitCounts]) -> Iterator[Finding]:
    for count in counts:
        official = count.official
        if official is None or _is_small(count, official):
            continue
        missing = [
            f"{found} of {expected} {name}"
            for name in ("utterances", "speakers", "classes")
            if (expected := getattr(official, name)) is not None
            and (found := getattr(count, name)) is not None
            and found < COMPLETE * expected
        ]
        if count.utterances > (official.utterances or count.utterances):
            yield Finding(
                f"Split {count.split!r} has {count.utterances} utterances, more than the "
                f"{official.utterances} of its publication.",
                fix="Remove files that are not of the corpus, unless they are intended.",
                code="corpus-inconsistent",
            )
        if missing:
            yield Finding(
                f"Split {count.split!r} has only {', '.join(missing)} of its publication.",
                fix="Complete the corpus, unless this part of it is intended.",
                code="corpus-incomplete",
            )


def _is_small(count: SplitCounts, official: Official) -> bool:
    """Whether a split is a small part of the published one, by utterances or else by speakers."""
    if official.utterances is not None:
        return count.utterances < SMALL * official.utterances
    return (count.speakers or 0) < SMALL * (official.speakers or 0)


def _audio(manifest: Manifest) -> pa.Table:
    """Id, path, digest, start and duration (rounded to ms) and labels of each utterance."""
    table = manifest.columns("id", "path", "digest", "start", "duration", "labels")
    for place in (3, 4):
        name = table.column_names[place]
        table = table.set_column(place, name, pc.round(table[name], 3))
    return table


def _repeated_audio(split: _Split) -> Iterator[Finding]:
    audio = _audio(split.manifest).drop_columns("labels")
    keys = [audio[name].fill_null(0).to_numpy() for name in ("duration", "start", "digest")]
    order = np.lexsort(keys)
    same = np.all([key[order[1:]] == key[order[:-1]] for key in keys], axis=0)
    repeated = np.union1d(order[:-1][same], order[1:][same])  # in the order of the split
    by_audio: dict[object, list[str]] = defaultdict(list)
    for chunk in range(0, len(repeated), _CHUNK_ROWS):
        for row in audio.take(repeated[chunk : chunk + _CHUNK_ROWS]).to_pylist():
            if row["digest"] is not None:
                by_audio[row["digest"], row["start"], row["duration"]].append(row["path"])
    groups = [paths for paths in by_audio.values() if len(set(paths)) > 1]
    if groups:
        extra = sum(len(paths) - 1 for paths in groups)
        yield Finding(
            f"Split {split.name!r} has {extra} of {len(split)} utterances more than once, under "
            "other names.",
            where=" and ".join(list(dict.fromkeys(groups[0]))[:2]),
            fix="Keep one of them.",
            code="corpus-duplicates",
        )


def _shared_utterances(corpus: Corpus, first: _Split, second: _Split) -> Iterator[Finding]:
    listed_twice = _same_audio(*_common(corpus, first, second, "path"), "path")
    if listed_twice:
        yield Finding(
            f"{len(listed_twice)} of {len(second)} utterances of split {second.name!r} are in "
            f"split {first.name!r} too.",
            where=listed_twice[0][0],
            fix="List each file in one split.",
            code="corpus-overlap",
            certain=True,
        )
        return
    copies = _same_audio(*_common(corpus, first, second, "digest"), "digest")
    if copies:
        yield Finding(
            f"{len(copies)} of {len(second)} utterances of split {second.name!r} have the same "
            f"samples as utterances of split {first.name!r}.",
            where=" and ".join(copies[0]),
            fix="Remove the copies, or name another folder for this split.",
            code="corpus-overlap",
            certain=len(copies) > MAXIMUM_SHARED * len(second),
        )
    yield from _shared_names(corpus, first, second, {path for path, _ in copies})


def _same_audio(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], column: str
) -> list[tuple[str, str]]:
    """Paths of utterances of the second list, each with that of a first one whose audio it shares.

    Of files with equal values in the column, segments share audio where their times overlap: a
    split may hold chunks of the recordings of another one.
    """
    originals: dict[Any, list[tuple[float, float, str]]] = defaultdict(list)
    for row in mine:
        originals[row[column]].append((row["start"], row["start"] + row["duration"], row["path"]))
    shared = []
    for row in theirs:
        start, end = row["start"], row["start"] + row["duration"]
        overlapping = (
            path
            for first, last, path in originals[row[column]]
            if min(end, last) - max(start, first) > _SMALLEST_OVERLAP
        )
        original = next(overlapping, None)
        if original is not None:
            shared.append((row["path"], original))
    return shared


def _shared_names(
    corpus: Corpus, first: _Split, second: _Split, known: Collection[str]
) -> Iterator[Finding]:
    """Utterances of one name, speaker and labels in two splits, such as copies at another level.

    Only where the corpus knows the speakers: others may number the utterances of each split.
    """
    mine, theirs = _common(corpus, first, second, "id")
    originals = {(row["id"], row["labels"]): row["path"] for row in mine}
    same = [
        (row["path"], originals[row["id"], row["labels"]])
        for row in theirs
        if (row["id"], row["labels"]) in originals
        and row["path"] not in known
        and corpus.speaker(row["id"], json.loads(row["labels"])) is not None
    ]
    if same:
        yield Finding(
            f"{len(same)} of {len(second)} utterances of split {second.name!r} have the names and "
            f"labels of utterances of split {first.name!r}.",
            where=" and ".join(same[0]),
            fix="Remove them from one of the splits.",
            code="corpus-overlap",
            certain=len(same) > MAXIMUM_SHARED * len(second),
        )


def _common(
    corpus: Corpus, first: _Split, second: _Split, column: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The utterances of two splits with a value in a column that the other split has, too.

    Without those that may be in both splits.
    """
    tables = [_audio(split.manifest) for split in (first, second)]
    # The values of the smaller split are looked up, then what is left of the other one.
    for place in (0, 1) if len(first) > len(second) else (1, 0):
        values = tables[1 - place][column].combine_chunks()
        shared = pc.is_in(tables[place][column], value_set=values, skip_nulls=True)
        tables[place] = tables[place].filter(shared)
    mine, theirs = (
        [
            row
            for row in table.to_pylist()
            if not corpus.may_share(first.name, second.name, json.loads(row["labels"]))
        ]
        for table in tables
    )
    return mine, theirs


def _shared_speakers(corpus: Corpus, first: _Split, second: _Split) -> Iterator[Finding]:
    rule = corpus.shared_speakers(first.name, second.name)
    both = sorted(first.speakers.keys() & second.speakers.keys())
    if both and rule != "allowed":
        yield Finding(
            f"{len(both)} of {len(second.speakers)} speakers of split {second.name!r} are in split "
            f"{first.name!r} too.",
            where=f"speaker {both[0]}",
            fix="Give each speaker to one split, as the published splits do.",
            code="corpus-overlap",
            certain=rule == "error",
        )


def _untrained_classes(corpus: Corpus, splits: Sequence[_Split]) -> Iterator[Finding]:
    """Classes of the label space, or of an evaluated split, that no training utterance has."""
    train, *evaluated = splits
    if not train.classes:
        return
    if len(train.classes) == 1:
        yield Finding(
            f"All utterances of split {train.name!r} are of one class.",
            where=f"class {next(iter(train.classes))}",
            fix="Add utterances of other classes.",
            code="corpus-incomplete",
        )
    for split in evaluated:
        missing = sorted(split.classes.keys() - train.classes.keys())
        if missing:
            count = sum(split.classes[name] for name in missing)
            yield Finding(
                f"{count} of {len(split)} utterances of split {split.name!r} belong to "
                f"{len(missing)} classes without a training utterance.",
                where=f"class {missing[0]}",
                fix="Add the missing training data.",
                code="corpus-incomplete",
                certain=True,
            )
            return
    declared = set(corpus.declared_classes())
    missing = sorted(declared - train.classes.keys())
    if missing:
        yield Finding(
            f"{len(missing)} of {len(declared)} classes have no usable training utterance.",
            where=f"class {missing[0]}",
            fix="Add the missing training data, unless their absence is intended.",
            code="corpus-incomplete",
        )
