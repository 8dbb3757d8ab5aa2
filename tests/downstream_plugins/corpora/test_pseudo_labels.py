"""Self training: predicted transcripts as training data of `asr`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from downstream_plugins.asr import SpeechRecognition
from downstream_plugins.asr.corpus import LibriSpeech
from s3prl_mtl.data import load_cuts
from s3prl_mtl.data.corpus_report import report_corpus
from tests.mistakes import user_error


@pytest.fixture
def libri(tmp_path, write_audio, write_text) -> Path:
    root = tmp_path / "LibriSpeech"
    for name in ("train-clean-100/19/198/19-198-0000", "dev-clean/84/121/84-121-0000"):
        write_audio(root / f"{name}.flac")
        speaker, chapter, _ = name.split("/")[-1].split("-")
        path = (root / name).with_name(f"{speaker}-{chapter}.trans.txt")
        write_text(path, f"{name.split('/')[-1]} THE CAT\n")
    for number in range(6):
        write_audio(tmp_path / "more" / f"{number}.wav")
    return root


def write(path: Path, *lines: tuple[str, Any]) -> Path:
    entries = [
        {"file": file} | (answer if "error" in answer else {"asr": answer})
        for file, answer in lines
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def texts(corpus: LibriSpeech, split: str = "train") -> dict[str, str]:
    return {utterance.path.name: utterance.labels["text"] for utterance in corpus.utterances(split)}


def corpus_with(libri: Path, path: Path, **settings: Any) -> LibriSpeech:
    return LibriSpeech(
        libri_root=libri, train=["train-clean-100"], test=[], pseudo_labels=path, **settings
    )


def test_confident_transcripts_are_added_and_the_others_counted(libri: Path) -> None:
    folder = libri.parent
    path = write(
        folder / "pseudo.jsonl",
        ("more/0.wav", {"text": "a dog  ran", "confidence": 0.95}),
        ("more/1.wav", {"text": "HOME", "confidence": 0.9}),
        (str(folder / "more/2.wav"), {"text": "FAR", "confidence": 0.89999}),
        ("more/3.wav", {"text": " ", "confidence": 1.0}),
        ("more/4.wav", {"error": "no audio"}),
        ("more/0.wav", {"text": "AGAIN", "confidence": 1.0}),
        ("LibriSpeech/train-clean-100/19/198/19-198-0000.flac", {"text": "X", "confidence": 1.0}),
    )
    corpus = corpus_with(libri, path)
    assert corpus.problems() == []
    assert texts(corpus) == {"19-198-0000.flac": "THE CAT", "0.wav": "A DOG RAN", "1.wav": "HOME"}
    assert texts(corpus, "dev-clean") == {"84-121-0000.flac": "THE CAT"}
    (note,) = corpus.notes()
    assert note.startswith(f"2 pseudo-labelled utterances of {path}")
    for count in ("1 below the confidence 0.9", "1 without words", "1 with an error",
                  "2 already transcribed"):  # fmt: skip
        assert count in note
    assert texts(corpus_with(libri, path, pseudo_confidence=0.5))["2.wav"] == "FAR"


def test_the_head_is_that_of_the_transcribed_utterances(libri: Path) -> None:
    path = write(libri.parent / "p.jsonl", ("more/0.wav", {"text": "DOG", "confidence": 1.0}))
    plain = LibriSpeech(libri_root=libri, test=[])
    assert corpus_with(libri, path).label_space() == plain.label_space()
    alone = LibriSpeech(libri_root=libri, train=[], test=[], pseudo_labels=path)
    assert texts(alone) == {"0.wav": "DOG"}
    assert {"D", "O", "G"} < set(alone.label_space()["symbols"])


def test_a_changed_file_is_read_again(libri: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ("more/0.wav", {"text": "DOG", "confidence": 1.0}))
    corpus = corpus_with(libri, path)
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 2
    write(
        path,
        ("more/0.wav", {"text": "DOG", "confidence": 1.0}),
        ("more/1.wav", {"text": "RAN", "confidence": 1.0}),
    )
    found = load_cuts(corpus_with(libri, path), "train", tmp_path / "cache")
    assert [cut.custom["labels"]["text"] for cut in found] == ["THE CAT", "DOG", "RAN"]


def test_utterances_of_the_dev_set_are_found(libri: Path, tmp_path: Path) -> None:
    path = write(
        libri.parent / "p.jsonl",
        ("LibriSpeech/dev-clean/84/121/84-121-0000.flac", {"text": "THE", "confidence": 1.0}),
    )
    settings = {"libri_root": libri, "test": [], "pseudo_labels": path}
    corpus = SpeechRecognition.make_corpus(settings)
    cuts = {name: load_cuts(corpus, name, tmp_path) for name in ("train", "dev-clean")}
    codes = {finding.code for finding in report_corpus(corpus, cuts, cache_dir=tmp_path).findings}
    assert "corpus-overlap" in codes


@pytest.mark.parametrize(
    "line",
    [
        "THE CAT",
        "[1]",
        '{"file": "more/0.wav"}',
        '{"file": "more/0.wav", "ks": {"class": "yes"}}',
        '{"file": "more/0.wav", "asr": {"text": 3}}',
        '{"asr": {"text": "A", "confidence": 1.0}}',
        '{"file": "more/0.wav", "asr": {"text": "A"}}',
        '{"file": "more/0.wav", "asr": {"text": "A", "confidence": "high"}}',
    ],
)
def test_other_lines_are_refused(libri: Path, line: str) -> None:
    path = write(libri.parent / "p.jsonl", ("more/1.wav", {"text": "DOG", "confidence": 1.0}))
    path.write_text(path.read_text() + line + "\n")
    with user_error("corpus-malformed", rf"{path}, line 2"):
        corpus_with(libri, path).utterances("train")


def test_without_a_threshold_no_confidence_is_needed(libri: Path) -> None:
    path = write(libri.parent / "p.jsonl", ("more/1.wav", {"text": "DOG"}))
    assert texts(corpus_with(libri, path, pseudo_confidence=0))["1.wav"] == "DOG"


def test_wrong_settings_are_refused(libri: Path) -> None:
    (problem,) = corpus_with(libri, libri / "no.jsonl").problems()
    assert "pseudo_labels" in problem
    for value in (1.5, -0.1, True, "0.9"):
        with user_error("invalid-value", "pseudo_confidence"):
            corpus_with(libri, libri / "no.jsonl", pseudo_confidence=value)
