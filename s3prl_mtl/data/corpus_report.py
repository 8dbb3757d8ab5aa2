"""Report of a corpus: counts of each split, and findings that make training or scores wrong.

Compares the splits with each other, and the corpus with the numbers of its publication. Reads the
manifests only: the scan of a split has already looked at the audio (:mod:`.scanning`).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lhotse import CutSet
from lhotse.cut import Cut

from s3prl_mtl.data.corpus import Corpus, Finding, Official
from s3prl_mtl.errors import UserError

logger = logging.getLogger(__name__)

MAXIMUM_SHARED = 0.01
"""Largest fraction of an evaluated split that may be in another split; more is an error."""

SMALL = 0.1
"""A split with a smaller fraction of the published utterances is small on purpose."""
COMPLETE = 0.995
"""A split with a larger fraction of the published size is complete."""


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
class CorpusReport:
    """Counts of the splits of a corpus, findings (errors first), and where its files are."""

    corpus: Corpus
    splits: Sequence[SplitCounts]
    findings: Sequence[Finding]
    notes: Sequence[str] = ()

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


def report_corpus(
    corpus: Corpus,
    splits: Mapping[str, CutSet],
    more: Sequence[Finding] = (),
    trained: bool = True,
) -> CorpusReport:
    """Compare the splits of a corpus with each other and with its publication.

    Args:
        corpus: the corpus.
        splits: cuts by split, the training split first.
        more: findings of the task, to be added.
        trained: whether the first split is the training split.
    """
    listed = {split: list(cuts) for split, cuts in splits.items()}
    counts = [_count(corpus, split, cuts) for split, cuts in listed.items()]
    findings = [*more, *(finding for split in listed for finding in corpus.findings(split))]
    findings += _partial_splits(counts)
    for split, cuts in listed.items():
        findings += _repeated_audio(split, cuts)
    for first, second in combinations(listed, 2):
        findings += _shared_utterances(corpus, (first, listed[first]), (second, listed[second]))
        findings += _shared_speakers(corpus, (first, listed[first]), (second, listed[second]))
    if trained:
        findings += _untrained_classes(corpus, listed)
    findings.sort(key=lambda finding: not finding.certain)
    return CorpusReport(corpus, counts, findings, corpus.notes())


def _count(corpus: Corpus, split: str, cuts: Sequence[Cut]) -> SplitCounts:
    speakers = {corpus.speaker(cut.id, cut.custom["labels"]) for cut in cuts} - {None}
    classes = {c for cut in cuts for c in corpus.classes(cut.custom["labels"])}
    hours = sum(cut.duration for cut in cuts) / 3600
    return SplitCounts(
        split,
        len(cuts),
        hours,
        len(speakers) or None,
        len(classes) or None,
        corpus.official(split),
    )


def _partial_splits(counts: Sequence[SplitCounts]) -> Iterator[Finding]:
    for count in counts:
        official = count.official
        if official is None or count.utterances < SMALL * (official.utterances or 0):
            continue
        missing = [
            f"{found} of {expected} {name}"
            for name in ("utterances", "speakers", "classes")
            if (expected := getattr(official, name)) is not None
            and (found := getattr(count, name)) is not None
            and found < COMPLETE * expected
        ]
        if missing:
            yield Finding(
                f"Split {count.split!r} has only {', '.join(missing)} of its publication.",
                fix="Complete the corpus, unless this part of it is intended.",
                code="corpus-incomplete",
            )


def _digest(cut: Cut) -> tuple[str, float, float] | None:
    """Identifies the audio of a cut; None if it is unknown or constant."""
    digest = cut.custom.get("digest")
    return None if digest is None else (digest, round(cut.start, 3), round(cut.duration, 3))


def _path(cut: Cut) -> str:
    return str(cut.recording.sources[0].source)


def _repeated_audio(split: str, cuts: Sequence[Cut]) -> Iterator[Finding]:
    by_digest: dict[object, list[Cut]] = defaultdict(list)
    for cut in cuts:
        digest = _digest(cut)
        if digest is not None:
            by_digest[digest].append(cut)
    repeated = [same for same in by_digest.values() if len({_path(cut) for cut in same}) > 1]
    if repeated:
        extra = sum(len(same) - 1 for same in repeated)
        yield Finding(
            f"Split {split!r} has {extra} of {len(cuts)} utterances more than once, under other "
            "names.",
            where=" and ".join(_path(cut) for cut in repeated[0][:2]),
            fix="Keep one of them.",
            code="corpus-duplicates",
        )


def _shared_utterances(
    corpus: Corpus, first: tuple[str, Sequence[Cut]], second: tuple[str, Sequence[Cut]]
) -> Iterator[Finding]:
    names = first[0], second[0]
    mine, theirs = (
        [cut for cut in cuts if not corpus.may_share(*names, cut.custom["labels"])]
        for cuts in (first[1], second[1])
    )
    files = {(_path(cut), cut.start): cut for cut in mine}
    listed_twice = [cut for cut in theirs if (_path(cut), cut.start) in files]
    if listed_twice:
        yield Finding(
            f"{len(listed_twice)} of {len(second[1])} utterances of split {names[1]!r} are in "
            f"split {names[0]!r} too.",
            where=_path(listed_twice[0]),
            fix="List each file in one split.",
            code="corpus-overlap",
            certain=True,
        )
        return
    digests = {_digest(cut): cut for cut in mine}
    copies = [cut for cut in theirs if _digest(cut) is not None and _digest(cut) in digests]
    if copies:
        yield Finding(
            f"{len(copies)} of {len(second[1])} utterances of split {names[1]!r} have the same "
            f"samples as utterances of split {names[0]!r}.",
            where=f"{_path(copies[0])} and {_path(digests[_digest(copies[0])])}",
            fix="Remove the copies, or name another folder for this split.",
            code="corpus-overlap",
            certain=len(copies) > MAXIMUM_SHARED * len(second[1]),
        )


def _shared_speakers(
    corpus: Corpus, first: tuple[str, Sequence[Cut]], second: tuple[str, Sequence[Cut]]
) -> Iterator[Finding]:
    names = first[0], second[0]
    rule = corpus.shared_speakers(*names)
    if rule == "allowed":
        return
    mine, theirs = (
        Counter(corpus.speaker(cut.id, cut.custom["labels"]) for cut in cuts)
        for cuts in (first[1], second[1])
    )
    both = sorted(speaker for speaker in mine.keys() & theirs.keys() if speaker is not None)
    if both:
        yield Finding(
            f"{len(both)} of {len(theirs)} speakers of split {names[1]!r} are in split "
            f"{names[0]!r} too.",
            where=f"speaker {both[0]}",
            fix="Give each speaker to one split, as the published splits do.",
            code="corpus-overlap",
            certain=rule == "error",
        )


def _untrained_classes(corpus: Corpus, splits: Mapping[str, Sequence[Cut]]) -> Iterator[Finding]:
    """Classes of the label space, or of an evaluated split, that no training utterance has."""
    train, *evaluated = splits
    seen = {c for cut in splits[train] for c in corpus.classes(cut.custom["labels"])}
    if not seen:
        return
    for split in evaluated:
        asked = Counter(c for cut in splits[split] for c in corpus.classes(cut.custom["labels"]))
        missing = sorted(asked.keys() - seen)
        if missing:
            count = sum(asked[name] for name in missing)
            yield Finding(
                f"{count} of {len(splits[split])} utterances of split {split!r} belong to "
                f"{len(missing)} classes without a training utterance.",
                where=f"class {missing[0]}",
                fix="Add the missing training data.",
                code="corpus-incomplete",
                certain=True,
            )
            return
    declared = set(corpus.declared_classes())
    missing = sorted(declared - seen)
    if missing:
        yield Finding(
            f"{len(missing)} of {len(declared)} classes have no usable training utterance.",
            where=f"class {missing[0]}",
            fix="Add the missing training data, unless their absence is intended.",
            code="corpus-incomplete",
        )
