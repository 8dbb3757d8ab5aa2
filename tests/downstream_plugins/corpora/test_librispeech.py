from __future__ import annotations

import re
from collections import Counter

import pytest

from downstream_plugins.asr.corpus import LibriSpeech, build_symbols, spell
from downstream_plugins.pr.corpus import VOCABULARY, LibriSpeechPhones
from s3prl_mtl.data import load_cuts
from s3prl_mtl.errors import UserError
from tests.mistakes import user_error

TEXTS = {
    "train-clean-100": {"19-198-0000": "THE CAT SAT", "26-495-0001": "A DOG RAN HOME"},
    "dev-clean": {"84-121123-0000": "HELLO"},
    "test-clean": {"61-70968-0000": "WORLD"},
}
LEXICON = """\
THE  DH AH0
THE  DH IY0
CAT\tK AE1 T
SAT  S AE1 T
A  AH0
DOG  D AO1 G
RAN  R AE1 N
HELLO  HH AH0 L OW1
WORLD  W ER1 L D
"""


@pytest.fixture
def libri(tmp_path, write_audio, write_text):
    root = tmp_path / "LibriSpeech"
    for name, texts in TEXTS.items():
        for identifier, text in texts.items():
            speaker, chapter, _ = identifier.split("-")
            folder = root / name / speaker / chapter
            write_audio(folder / f"{identifier}.flac")
            write_text(folder / f"{speaker}-{chapter}.trans.txt", f"{identifier} {text}\n")
    write_text(root / "librispeech-lexicon.txt", LEXICON)
    write_text(root / "g2p.txt", "HOME  HH OW1 M\nCAT  K AA1 T\n")
    return root


def phones_of(root, *lexicons):
    return LibriSpeechPhones(libri_root=root, lexicon=[root / name for name in lexicons])


def test_asr_utterances_have_their_file_and_their_words(libri):
    corpus = LibriSpeech(libri_root=libri)
    assert corpus.problems() == []
    assert corpus.splits == ("train", "dev-clean", "test-clean")
    found = {u.id: (u.path.name, u.labels["text"]) for u in corpus.utterances("train")}
    assert found == {
        identifier: (f"{identifier}.flac", text)
        for identifier, text in TEXTS["train-clean-100"].items()
    }
    assert [u.labels["text"] for u in corpus.utterances("dev-clean")] == ["HELLO"]


def test_asr_other_sets_are_splits_where_they_are_unpacked(libri):
    (libri / "dev-clean").rename(libri / "dev-other")
    corpus = LibriSpeech(libri_root=libri, dev=["dev-other"])
    assert corpus.splits == ("train", "dev-other", "test-clean")
    assert len(corpus.utterances("dev-other")) == 1


def test_asr_train_may_be_several_sets(libri):
    corpus = LibriSpeech(libri_root=libri, train=["train-clean-100", "dev-clean"])
    assert len(corpus.utterances("train")) == 3


def test_asr_symbols_are_those_of_fairseq(golden):
    reference = golden("asr")
    symbols = build_symbols(reference["transcripts"])
    assert symbols == reference["symbols"]
    for text, target in zip(reference["transcripts"], reference["others"][0], strict=True):
        expected = [symbols[index] for index in target[:-1]]
        assert spell(text) == expected
        assert symbols[target[-1]] == "</s>"


def test_asr_symbols_are_sorted_by_count_and_padded_to_a_multiple_of_8(libri):
    symbols = LibriSpeech(libri_root=libri).label_space()["symbols"]
    letters = "THE|CAT|SAT|" + "A|DOG|RAN|HOME|"
    counts = Counter(letters)
    known = [symbol for symbol in symbols[4:] if not symbol.startswith("madeupword")]
    assert sorted(known, key=lambda s: (-counts[s], ord(s))) == known
    assert set(known) == set(letters)
    assert len(symbols) == 24 and symbols[4 + len(known)] == "madeupword0000"


def test_asr_a_transcript_without_its_file_counts_as_unreadable(libri, tmp_path):
    next((libri / "dev-clean").rglob("*.flac")).unlink()
    corpus = LibriSpeech(libri_root=libri)
    with user_error("corpus-incomplete") as caught:
        load_cuts(corpus, "dev-clean", tmp_path / "cache")
    assert "84-121123-0000.flac" in str(caught.value)


def test_asr_problems_name_every_missing_set(tmp_path, libri):
    missing = LibriSpeech(libri_root=tmp_path / "nowhere").problems()
    assert len(missing) == 1 and str(tmp_path / "nowhere") in missing[0]
    assert "datarc.libri_root" in missing[0] and "--data" in missing[0]
    (libri / "dev-clean").rename(libri / "elsewhere")
    (libri / "test-clean" / "61").rename(libri / "61")
    problems = LibriSpeech(libri_root=libri).problems()
    assert len(problems) == 2
    assert "dev-clean does not exist" in problems[0] and "holds neither" in problems[1]


def test_pr_vocabulary_is_superbs(golden):
    assert list(VOCABULARY) == golden("pr")["labels"]["vocabulary"]
    assert len(VOCABULARY) == 74


def test_pr_takes_the_first_pronunciation_of_the_first_lexicon_that_has_the_word(libri):
    corpus = phones_of(libri, "librispeech-lexicon.txt", "g2p.txt")
    assert corpus.problems() == []
    found = {u.id: " ".join(u.labels["phones"]) for u in corpus.utterances("train")}
    assert found == {
        "19-198-0000": "DH AH0 K AE1 T S AE1 T",
        "26-495-0001": "AH0 D AO1 G R AE1 N HH OW1 M",
    }
    reverse = phones_of(libri, "g2p.txt", "librispeech-lexicon.txt")
    assert "K AA1 T" in " ".join(reverse.utterances("train")[0].labels["phones"])


def test_pr_a_word_missing_from_the_lexicon_is_named_with_both_files(libri):
    with pytest.raises(UserError) as caught:
        phones_of(libri, "librispeech-lexicon.txt").utterances("train")
    message = str(caught.value)
    assert "HOME" in message and "26-495.trans.txt" in message
    assert str(libri / "librispeech-lexicon.txt") in message


def test_pr_many_missing_words_come_in_one_error(libri, write_text):
    words = " ".join(f"WORD{letter}" for letter in "ABCDEFGHIJKLM")
    write_text(libri / "dev-clean/84/121123/84-121123.trans.txt", f"84-121123-0000 {words}\n")
    with user_error("corpus-incomplete", where=r"librispeech-lexicon\.txt") as caught:
        phones_of(libri, "librispeech-lexicon.txt").utterances("dev")
    found = re.findall(r"\b(?:13|3|WORD[A-M])\b", caught.value.what)
    assert found == ["13", *(f"WORD{letter}" for letter in "ABCDEFGHIJ"), "3"]


@pytest.mark.parametrize("line", ["HOME  HH OW9 M", "HOME"])
def test_pr_a_malformed_pronunciation_is_named_with_its_line(libri, write_text, line):
    write_text(libri / "g2p.txt", f"CAT  K AA1 T\n{line}\n")
    with user_error("corpus-malformed", where=r"g2p\.txt, line 2$") as caught:
        phones_of(libri, "g2p.txt").utterances("train")
    assert "HOME" in caught.value.what


def test_pr_problems_name_a_missing_lexicon(libri):
    (problem,) = phones_of(libri, "nowhere.txt").problems()
    assert "nowhere.txt does not exist" in problem and "datarc.lexicon" in problem
