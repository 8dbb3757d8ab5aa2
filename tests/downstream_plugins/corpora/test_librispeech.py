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
    absent, empty = problems
    assert str(libri / "dev-clean") in absent and str(libri / "test-clean") in empty
    # Only of a folder that is absent, similar names beside it are told.
    assert "test-clean" in absent and "dev-clean" not in empty


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
    with user_error("corpus-malformed", where=r"g2p\.txt, line 2: HOME") as caught:
        phones_of(libri, "g2p.txt").utterances("train")
    assert "HOME" in caught.value.what


def test_pr_problems_name_a_missing_lexicon(libri):
    (problem,) = phones_of(libri, "nowhere.txt").problems()
    assert str(libri / "nowhere.txt") in problem and "datarc.lexicon" in problem


def transcript_file(root, name="train-clean-100", speaker=19):
    return next((root / name).rglob(f"{speaker}-*.trans.txt"))


def findings_of(root, split="train"):
    return LibriSpeech(libri_root=root).findings(split)


def many(root, write_audio, empty, total):
    """So many transcripts in dev-clean, of which some have no words."""
    folder = root / "dev-clean" / "84" / "121123"
    names = [f"84-121123-{number:04d}" for number in range(total)]
    for name in names:
        write_audio(folder / f"{name}.flac")
    lines = [name + (" " if i < empty else " HELLO") for i, name in enumerate(names)]
    (folder / "84-121123.trans.txt").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("empty", "total", "certain"), [(0, 3, None), (1, 150, False), (1, 20, True), (3, 4, True)]
)
def test_transcripts_without_words_are_skipped_and_counted(
    empty, total, certain, libri, write_audio
):
    many(libri, write_audio, empty, total)
    corpus = LibriSpeech(libri_root=libri)
    assert len(corpus.utterances("dev-clean")) == total - empty
    findings = corpus.findings("dev-clean")
    assert [finding.certain for finding in findings] == ([] if certain is None else [certain])
    assert all(f.what.startswith(f"{empty} of {total}") for f in findings)
    assert all("trans.txt, line 1" in f.where for f in findings)
    phones = phones_of(libri, "librispeech-lexicon.txt")
    assert len(phones.utterances("dev")) == total - empty
    assert phones.findings("dev") == findings


@pytest.mark.parametrize("between", ["\t", "  ", " \t ", "\u00a0"])
def test_any_blank_separates_the_name_from_the_words(between, libri):
    path = transcript_file(libri)
    path.write_bytes(f"19-198-0000{between}THE CAT{between}SAT\r\n".encode())
    texts = {u.id: u.labels["text"] for u in LibriSpeech(libri_root=libri).utterances("train")}
    assert texts["19-198-0000"] == "THE CAT SAT"
    assert findings_of(libri) == []


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("THE CAT'S HAT", None),
        ("the cat", None),
        ("CHAPTER 12", ["'1'", "'2'"]),
        ("CAFÉ", ["'É'"]),
        ("WELL, YES.", ["','", "'.'"]),
        ("TWENTY-ONE", ["'-'"]),
    ],
)
def test_characters_beyond_the_alphabet_are_counted_with_an_example(text, listed, libri):
    path = transcript_file(libri)
    path.write_text(f"19-198-0000 {text}\n", encoding="utf-8")
    findings = findings_of(libri)
    assert len(findings) == (listed is not None)
    for finding in findings:
        assert not finding.certain and all(character in finding.what for character in listed)
        assert finding.where.startswith(f"{path}, line 1")


@pytest.mark.parametrize("suffix", [".wav", ".ogg", ".mp3"])
def test_converted_audio_is_found_and_a_second_format_is_a_warning(suffix, libri):
    corpus = LibriSpeech(libri_root=libri)
    before = corpus.utterances("train")
    for path in sorted(libri.rglob("*.flac")):
        path.with_suffix(suffix).write_bytes(path.read_bytes())
    (finding,) = corpus.findings("train")
    assert (finding.code, finding.certain) == ("corpus-duplicates", False)
    preferred = ".wav" if suffix == ".wav" else ".flac"
    assert {u.path.suffix for u in corpus.utterances("train")} == {preferred}
    for path in sorted(libri.rglob("*.flac")):
        path.unlink()
    assert [u.id for u in corpus.utterances("train")] == [u.id for u in before]
    assert all(u.path.is_file() for u in corpus.utterances("train"))
    assert corpus.findings("train") == []


def test_audio_without_a_transcript_is_a_warning(libri, write_audio):
    write_audio(libri / "train-clean-100" / "19" / "198" / "19-198-0001.flac")
    (finding,) = findings_of(libri)
    assert not finding.certain and finding.where.endswith("19-198-0001.flac")


@pytest.mark.parametrize(
    "lines",
    [
        ";;; # CMUdict\nHELLO  HH AH0 L OW1\nHELLO(1)  HH EH0 L OW1\n;;; HELLO\n",
        "HELLO(2) HH AH0 L OW1\nHELLO HH EH0 L OW1\n",
        "HELLO 1.0 HH AH0 L OW1\nHELLO 0.2 HH EH0 L OW1\n",
        "HELLO 1.0 0.5 0.92 1.03 HH AH0 L OW1\n",
        "hello\tHH AH0 L OW1\n",
        "HELLO\t12.345\tHH AH0 L OW1\n",
        "HELLO HH AH0 L OW1 # an interjection\n",
        "\ufeffHELLO  HH AH0 L OW1\r\n",
        "CAFÉ  K AH0 F EY1\r\nHELLO  HH AH0 L OW1\r\n",
        "! SIL\n'S  Z\nHELLO  HH AH0 L OW1\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_pr_reads_the_forms_of_lexicons(lines, encoding, libri):
    if lines[0] == "\ufeff":
        encoding = "utf-8"
    (libri / "other.txt").write_bytes(lines.encode(encoding))
    (utterance,) = phones_of(libri, "other.txt").utterances("dev")
    assert " ".join(utterance.labels["phones"]) == "HH AH0 L OW1"


@pytest.mark.parametrize(
    ("lines", "count", "hint"),
    [
        ("HELLO HH AH L OW\nWORLD W ER L D\nB B\nTHE DH AH0\n", "2 of 4", "stress"),
        ("hello hh ah0 l ow1\nworld w er1 l d\n", "2 of 2", "upper case"),
        ("HELLO h @ l oU\nWORLD W ER1 L D\n", "1 of 2", "ARPABET"),
        ("HELLO\nWORLD 1.0\nA AH0\n", "2 of 3", "ARPABET"),
    ],
)
def test_pr_unknown_phones_are_one_error_with_their_count(lines, count, hint, libri, write_text):
    write_text(libri / "other.txt", lines)
    with user_error("corpus-malformed", where=r"other\.txt, line 1", fix=hint) as caught:
        phones_of(libri, "librispeech-lexicon.txt", "other.txt").utterances("dev")
    assert caught.value.what.startswith(count)
