"""The report of a corpus: sizes, splits that overlap, classes without training data."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data import Corpus, Finding, Official, Utterance, load_cuts
from s3prl_mtl.data.corpus_report import CorpusReport, report_corpus


class FolderCorpus(Corpus):
    """`<root>/<split>/<speaker>_<class>_<number>.wav`, or the files of `<root>/<split>.txt`."""

    title = "Folders"
    task = "toy"
    splits = ("train", "dev", "test")
    published: Mapping[str, Official] = {}
    speakers: Literal["allowed", "warning", "error"] = "allowed"
    classes_declared: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        super().__init__({"root": root})
        self.root = root

    def problems(self) -> list[str]:
        return []

    def utterances(self, split: str) -> list[Utterance]:
        paths = sorted((self.root / split).glob("*.wav"))
        listed = self.root / f"{split}.txt"
        if listed.is_file():
            paths += [self.root / line for line in listed.read_text().split()]
        return [
            Utterance(f"{path.parent.name}-{path.stem}", path, {"class": path.stem.split("_")[1]})
            for path in paths
        ]

    def label_space(self) -> dict[str, Any]:
        return {"classes": list(self.classes_declared)}

    def official(self, split: str) -> Official | None:
        return self.published.get(split)

    def speaker(self, utterance_id: str, labels: Mapping[str, Any]) -> str | None:
        return utterance_id.split("-", 1)[1].split("_")[0]

    def shared_speakers(self, first: str, second: str) -> Literal["allowed", "warning", "error"]:
        return self.speakers


@pytest.fixture
def make(tmp_path: Path, write_audio: Callable[..., Path]) -> Callable[..., FolderCorpus]:
    """A corpus with so many utterances of each split, of two classes, without an overlap."""

    def make(train: int = 4, dev: int = 2, test: int = 2) -> FolderCorpus:
        root, seed = tmp_path / "corpus", 0
        for split, count in (("train", train), ("dev", dev), ("test", test)):
            for number in range(count):
                seed += 1
                name = f"{split}spk{number // 2}_c{number % 2}_{number}.wav"
                write_audio(root / split / name, seconds=0.1, seed=seed)
        return FolderCorpus(root)

    return make


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Corpus], CorpusReport]:
    def report(corpus: Corpus) -> CorpusReport:
        cuts = {split: load_cuts(corpus, split, tmp_path / "cache") for split in corpus.splits}
        return report_corpus(corpus, cuts)

    return report


def found(report: CorpusReport) -> list[tuple[str, bool]]:
    """The code of each finding, and whether it is an error."""
    return [(finding.code, finding.certain) for finding in report.findings]


def test_a_sound_corpus_has_counts_and_no_findings(make, report):
    result = report(make())
    assert result.findings == []
    counts = [(c.split, c.utterances, c.speakers, c.classes) for c in result.splits]
    assert counts == [("train", 4, 2, 2), ("dev", 2, 1, 2), ("test", 2, 1, 2)]
    assert result.splits[0].hours == pytest.approx(4 * 0.1 / 3600)


@pytest.mark.parametrize(
    ("published", "is_partial"), [(4, False), (5, True), (8, True), (39, True), (41, False)]
)
def test_a_part_of_the_published_size_is_a_warning(published, is_partial, make, report):
    corpus = make()
    corpus.published = {"train": Official(published)}
    assert found(report(corpus)) == [("corpus-incomplete", False)] * is_partial


def test_missing_speakers_and_classes_are_counted_too(make, report):
    corpus = make()
    corpus.published = {"train": Official(4, speakers=3, classes=2), "dev": Official(2, classes=5)}
    train, dev = report(corpus).findings
    counted = [re.findall(r"\d+ of \d+ \w+", finding.what) for finding in (train, dev)]
    assert counted == [["2 of 3 speakers"], ["2 of 5 classes"]]


def test_a_split_that_is_a_copy_of_train_is_an_error(make, report):
    corpus = make()
    for number, path in enumerate(sorted((corpus.root / "train").iterdir())):
        shutil.copy(path, corpus.root / "dev" / f"other_c0_{number}.wav")
    result = report(corpus)
    assert found(result) == [("corpus-overlap", True)]
    (mistake,) = result.mistakes()
    assert (
        "4 of 6" in mistake.what and "dev" in str(mistake.where) and "train" in str(mistake.where)
    )


def test_a_single_copy_of_many_is_a_warning(make, report):
    corpus = make(dev=200)
    first = min((corpus.root / "train").iterdir())
    shutil.copy(first, corpus.root / "dev" / "other_c0_0.wav")
    assert found(report(corpus)) == [("corpus-overlap", False)]


def test_a_file_that_two_splits_list_is_an_error(make, report):
    corpus = make(dev=200)
    name = min((corpus.root / "train").iterdir()).relative_to(corpus.root)
    (corpus.root / "dev.txt").write_text(f"{name}\n")
    assert found(report(corpus)) == [("corpus-overlap", True)]


def test_what_belongs_to_two_splits_by_definition_is_no_finding(make, report):
    corpus = make()
    shutil.copytree(corpus.root / "train", corpus.root / "dev", dirs_exist_ok=True)
    corpus.may_share = lambda first, second, labels: {first, second} == {"train", "dev"}
    assert found(report(corpus)) == []


def test_audio_that_a_split_has_twice_is_a_warning_with_both_files(make, report):
    corpus = make()
    first = min((corpus.root / "test").iterdir())
    shutil.copy(first, first.with_name("other_c0_0.wav"))
    (finding,) = report(corpus).findings
    assert (finding.code, finding.certain) == ("corpus-duplicates", False)
    assert first.name in str(finding.where) and "other_c0_0.wav" in str(finding.where)


def test_silent_files_are_not_taken_for_copies_of_each_other(make, report):
    corpus = make()
    samples = np.zeros(8000)
    for split, place in (("train", 10), ("dev", 20)):
        samples[place] = 0.1  # a click outside of what the digest is made of
        soundfile.write(corpus.root / split / f"{split}x_c0_9.wav", samples, 16_000)
    assert found(report(corpus)) == []


@pytest.mark.parametrize("rule", ["allowed", "warning", "error"])
def test_speakers_of_two_splits_are_judged_by_the_corpus(rule, make, report, write_audio):
    corpus = make()
    corpus.speakers = rule
    write_audio(corpus.root / "test" / "trainspk1_c0_7.wav", seconds=0.1, seed=99)
    expected = {
        "allowed": [],
        "warning": [("corpus-overlap", False)],
        "error": [("corpus-overlap", True)],
    }
    result = report(corpus)
    assert found(result) == expected[rule]
    assert all(finding.where == "speaker trainspk1" for finding in result.findings)


def test_a_class_that_is_tested_and_not_trained_is_an_error(make, report, write_audio):
    corpus = make()
    write_audio(corpus.root / "test" / "testspk0_c2_7.wav", seconds=0.1, seed=99)
    (finding,) = report(corpus).findings
    assert (finding.code, finding.certain, finding.where) == ("corpus-incomplete", True, "class c2")


def test_a_declared_class_that_nobody_has_is_a_warning(make, report):
    corpus = make()
    corpus.classes_declared = ("c0", "c1", "c9")
    (finding,) = report(corpus).findings
    assert (finding.certain, finding.where) == (False, "class c9")


def test_findings_of_the_corpus_come_with_it_and_errors_come_first(make, report):
    corpus = make()
    corpus.findings = lambda split: [
        Finding(f"about {split}", code="corpus-inconsistent", certain=split == "test")
    ]
    result = report(corpus)
    assert [finding.what for finding in result.findings] == [
        "about test",
        "about train",
        "about dev",
    ]
