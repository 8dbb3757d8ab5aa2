"""Audio SNIPS for slot filling.

Layout::

    all.iob.snips.txt    <utterance> BOS WORDS EOS<TAB>O slots intent, one line an utterance
    slots.txt            `O`, then the names of the slots, one per line
    train/ valid/ test/  <speaker>-snips-<split>-<number>.wav, in any subfolder
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from s3prl_mtl.data import (
    AudioIndex,
    Corpus,
    Finding,
    Official,
    Utterance,
    absolute,
    read_lines,
)
from s3prl_mtl.errors import UserError

VOCABULARY = ("<pad>", "<eos>", "<unk>", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'")
TRAIN_SPEAKERS = ["Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"]
VALID_SPEAKERS = ["Aditi", "Amy", "Geraint", "Nicole"]
TEST_SPEAKERS = ["Brian", "Emma", "Raveena", "Russell"]

IOB_FILE = "all.iob.snips.txt"
SLOTS_FILE = "slots.txt"
OUTSIDE = "O"
PUBLISHED = {
    "train": Official(104_672, speakers=8),
    "valid": Official(2800, speakers=4),
    "test": Official(2800, speakers=4),
}
"""Sizes of the splits of SUPERB's speakers."""
_PUNCTUATION = frozenset("?!.,;-")


class AudioSnips(Corpus):
    """Audio SNIPS: commands to a voice assistant, synthesised in sixteen voices.

    The splits are the folders, restricted to SUPERB's speakers of each split. Labels: `iob_words`
    and `iob_slots`, one slot name (or `O`) per word.

    Args:
        snips_root: the folder with `all.iob.snips.txt`.
        train_speakers: speakers of the split `train`.
        valid_speakers: speakers of the split `valid`.
        test_speakers: speakers of the split `test`.
    """

    title: ClassVar[str] = "Audio SNIPS"
    task: ClassVar[str] = "sf"
    cacheable: ClassVar[bool] = True
    splits: tuple[str, ...] = ("train", "valid", "test")

    def __init__(
        self,
        *,
        snips_root: str | os.PathLike[str],
        train_speakers: Sequence[str] = tuple(TRAIN_SPEAKERS),
        valid_speakers: Sequence[str] = tuple(VALID_SPEAKERS),
        test_speakers: Sequence[str] = tuple(TEST_SPEAKERS),
    ) -> None:
        self.root = absolute(snips_root)
        self.speakers = {
            "train": frozenset(train_speakers),
            "valid": frozenset(valid_speakers),
            "test": frozenset(test_speakers),
        }
        super().__init__(
            {"snips_root": self.root, **{k: sorted(v) for k, v in self.speakers.items()}}
        )

    def problems(self) -> list[str]:
        problems = self.missing_folder(self.root, f"the unpacked {self.title}", "snips_root")
        if problems:
            return problems
        for name, content in ((IOB_FILE, "words and slots"), (SLOTS_FILE, "the slots' names")):
            problems += self.missing_file(
                self.root / name, f"{content} of {self.title}", "snips_root"
            )
        for split in self.splits:
            problems += self.missing_folder(
                self.root / split, f"audio of the split {split}", "snips_root"
            )
        return problems

    def utterances(self, split: str) -> list[Utterance]:
        """The utterances of a split, sorted by id.

        Raises:
            UserError: as :meth:`Corpus.utterances`.
        """
        self.check_split(split)
        annotations = self._read_annotations()
        slots = set(self.label_space()["slots"])
        index = AudioIndex(self.root / split, by_name=True)
        found: list[Utterance] = []
        for identifier in index:
            if not self._belongs(identifier, split) or identifier not in annotations:
                continue
            number, words, word_slots = annotations[identifier]
            for slot in word_slots:
                if slot != OUTSIDE and slot not in slots:
                    raise UserError(
                        f"The slot {slot!r} of {identifier} is not in {SLOTS_FILE}.",
                        where=f"{self.root / IOB_FILE}, line {number}",
                        fix=f"Add it to {self.root / SLOTS_FILE}.",
                        code="label-unknown",
                    )
            labels = {"iob_words": words, "iob_slots": word_slots}
            path = index.find(identifier)
            assert path is not None
            source = f"{self.root / IOB_FILE}, line {number}"
            found.append(Utterance(identifier, path, labels, source=source))
        if not found and len(index):
            raise UserError(
                f"sf: none of {len(index)} audio files of split {split!r} is an annotated "
                f"utterance of its speakers {', '.join(sorted(self.speakers[split]))}.",
                where=str(index.find(next(iter(index)))),
                fix=f"Files are named <speaker>-snips-{split}-<number> and listed in {IOB_FILE}.",
                code="corpus-empty",
            )
        return sorted(found, key=lambda utterance: utterance.id)

    def findings(self, split: str) -> list[Finding]:
        """Audio of another split or without annotations, annotations without audio, utterances
        annotated twice."""
        index = AudioIndex(self.root / split, by_name=True)
        findings = self.doubles(index, f"split {split!r}")
        others = [identifier for identifier in index if self._other_split(identifier, split)]
        if others:
            findings.append(
                Finding(
                    f"{len(others)} of {len(index)} audio files of split {split!r} are named as "
                    "those of another split and are not used.",
                    where=str(index.find(others[0])),
                    fix="Move them into the folder of their split.",
                    code="corpus-malformed",
                )
            )
        annotations = self._read_annotations()
        used = [identifier for identifier in index if self._belongs(identifier, split)]
        unlabelled = [identifier for identifier in used if identifier not in annotations]
        if unlabelled:
            findings.append(
                Finding(
                    f"{len(unlabelled)} of {len(used)} audio files of split {split!r} are not in "
                    f"{IOB_FILE} and are not used.",
                    where=str(index.find(unlabelled[0])),
                    fix="Add their annotations, or remove them.",
                    code="corpus-incomplete",
                )
            )
        present = set(index)
        listed = [i for i in annotations if f"-{split}-" in i and self._belongs(i, split)]
        absent = [identifier for identifier in listed if identifier not in present]
        if absent:
            findings.append(
                Finding(
                    f"{len(absent)} of {len(listed)} annotated utterances of split {split!r} have "
                    "no audio.",
                    where=f"{self.root / IOB_FILE}, line {annotations[absent[0]][0]}: {absent[0]}",
                    fix=f"Complete {self.root / split}, unless this part of it is intended.",
                    code="corpus-incomplete",
                )
            )
        return findings + (self._repeated_annotations() if split == self.splits[0] else [])

    def _repeated_annotations(self) -> list[Finding]:
        path = self.root / IOB_FILE
        lines = [(number, line.split()) for number, line in read_lines(path)]
        entries = [(number, fields[0], fields[1:]) for number, fields in lines]
        return self.repeated(path, entries, "utterances")

    def _belongs(self, identifier: str, split: str) -> bool:
        """SUPERB's rule: use only the speakers of the split."""
        speaker = identifier.split("-")[0]
        return speaker in self.speakers[split] and not self._other_split(identifier, split)

    def _other_split(self, identifier: str, split: str) -> bool:
        """Whether a name such as `Ivy-snips-test-0` is that of another split."""
        return any(f"-{name}-" in identifier for name in self.splits if name != split)

    def label_space(self) -> dict[str, Any]:
        """The characters, and the slots of `slots.txt`.

        Raises:
            UserError: `slots.txt` does not begin with `O`, or has a slot twice.
        """
        path = self.root / SLOTS_FILE
        lines = [(number, line.strip()) for number, line in read_lines(path)]
        slots = [name for _, name in lines[1:]]
        twice = [number for number, name in lines[1:] if slots.count(name) > 1]
        if not lines or lines[0][1] != OUTSIDE or twice:
            raise UserError(
                "sf: a slot is listed twice." if twice else "sf: the first line is not `O`.",
                where=f"{path}, lines {' and '.join(map(str, twice))}" if twice else str(path),
                fix="It has `O`, then the name of each slot, one a line.",
                code="corpus-malformed",
            )
        return {"vocabulary": list(VOCABULARY), "slots": slots}

    def classes(self, labels: Mapping[str, Any]) -> list[str]:
        return sorted({f"slot {name}" for name in labels["iob_slots"] if name != OUTSIDE})

    def declared_classes(self) -> list[str]:
        return [f"slot {name}" for name in self.label_space()["slots"]]

    def official(self, split: str) -> Official | None:
        return PUBLISHED[split]

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return utterance_id.split("-")[0]

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return "warning"

    def _read_annotations(self) -> dict[str, tuple[int, list[str], list[str]]]:
        path = self.root / IOB_FILE
        annotations: dict[str, tuple[int, list[str], list[str]]] = {}
        for number, line in read_lines(path):
            identifier, annotation = _first_word(line)
            try:
                words, slots = parse_iob(annotation)
            except ValueError as error:
                raise UserError(
                    f"The annotation of {identifier} is malformed: {error}.",
                    where=f"{path}, line {number}",
                    fix="Each line is `<utterance> BOS WORDS EOS<TAB>O slots intent`, "
                    "as many slots as words.",
                    code="corpus-malformed",
                ) from error
            annotations[identifier] = (number, words, slots)
        return annotations


def _first_word(line: str) -> tuple[str, str]:
    """The first word of a line, and the rest; they are separated by blanks or tabs."""
    first, *rest = line.split(None, 1)
    return first, "".join(rest).rstrip()


def parse_iob(annotation: str) -> tuple[list[str], list[str]]:
    """The words and their slots in `BOS WORDS EOS<TAB>O slots intent`.

    Raises:
        ValueError: a malformed annotation.
    """
    sentence, tab, tags = annotation.partition("\t")
    if not tab:
        raise ValueError("there is no tab between words and slots")
    words, slots = sentence.split(), tags.split()
    if len(words) < 2 or words[0] != "BOS" or words[-1] != "EOS":
        raise ValueError("the words are not between BOS and EOS")
    if len(words) != len(slots):
        raise ValueError(f"{len(words)} words have {len(slots)} slots (BOS and EOS counted)")
    return words[1:-1], slots[1:-1]


def slot_target(words: Sequence[str], slots: Sequence[str]) -> str:
    """The target text of slot filling in SUPERB's format.

    `B-<slot>` precedes and `E-<slot>` follows each sequence of words of one slot. Words of
    punctuation marks are removed, `&` becomes `AND`, letters are upper case::

        PLAY MILES DAVIS .      O artist artist O
        PLAY B-artist MILES DAVIS E-artist

    Args:
        words: the words of an utterance.
        slots: the slot of each, `O` for none.
    """
    written: list[str] = []
    open_slot = OUTSIDE
    previous = OUTSIDE
    for word, slot in zip(words, slots, strict=True):
        if slot != previous and open_slot != OUTSIDE:
            written.append(f"E-{open_slot}")
            open_slot = OUTSIDE
        previous = slot
        if _PUNCTUATION.issuperset(word):
            continue
        if slot != OUTSIDE and open_slot == OUTSIDE:
            written.append(f"B-{slot}")
            open_slot = slot
        written.append("AND" if word == "&" else word.upper())
    if open_slot != OUTSIDE:
        written.append(f"E-{open_slot}")
    return " ".join(written)
