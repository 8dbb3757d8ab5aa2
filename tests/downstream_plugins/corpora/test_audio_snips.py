from __future__ import annotations

import re

import pytest

from downstream_plugins.sf.corpus import AudioSnips, parse_iob, slot_target
from tests.mistakes import user_error


@pytest.fixture
def snips(tmp_path, write_audio, write_text):
    root = tmp_path / "SNIPS"
    lines = []
    for split, speakers in [
        ("train", ["Ivy", "Brian"]),
        ("valid", ["Amy"]),
        ("test", ["Emma", "Ivy"]),
    ]:
        for speaker in speakers:
            name = f"{speaker}-snips-{split}-0"
            # Both layouts occur: flat, and a folder a speaker.
            folder = root / split / speaker if speaker != "Amy" else root / split
            write_audio(folder / f"{name}.wav")
            lines.append(f"{name} BOS PLAY MILES DAVIS EOS\tO O artist artist PlayMusic")
    write_text(root / "all.iob.snips.txt", "\n".join(lines) + "\n")
    write_text(root / "slots.txt", "O\nartist\ncity\n")
    return root


def test_splits_are_folders_restricted_to_superbs_speakers(snips):
    corpus = AudioSnips(snips_root=snips)
    assert corpus.problems() == []
    found = {split: [u.id for u in corpus.utterances(split)] for split in corpus.splits}
    assert found == {
        "train": ["Ivy-snips-train-0"],
        "valid": ["Amy-snips-valid-0"],
        "test": ["Emma-snips-test-0"],
    }


def test_labels_are_words_and_slots(snips):
    (utterance,) = AudioSnips(snips_root=snips).utterances("valid")
    assert utterance.labels == {
        "iob_words": ["PLAY", "MILES", "DAVIS"],
        "iob_slots": ["O", "artist", "artist"],
    }
    assert utterance.path == snips / "valid" / "Amy-snips-valid-0.wav"


def test_label_space_has_superbs_characters_and_the_slots_of_the_file(snips, golden):
    assert AudioSnips(snips_root=snips).label_space() == {
        "vocabulary": golden("sf")["labels"]["vocabulary"],
        "slots": ["artist", "city"],
    }


def test_targets_equal_those_of_the_original_program(golden):
    reference = golden("sf")
    tokens = [*reference["vocabulary"], *reference["slots"]]
    for line, expected, target in zip(
        reference["iob"],
        reference["records"]["groundtruth"],
        reference["others"][0],
        strict=True,
    ):
        text = slot_target(*parse_iob(line))
        assert text == expected
        # The tokens spell the same, without the spaces inside slot marks that decoding adds.
        spelt = "".join(tokens[index] for index in target[:-1])
        assert re.sub(r"(B-\w+) ", r"\1", re.sub(r" (E-\w+)", r"\1", text)) == spelt


@pytest.mark.parametrize(
    ("words", "slots", "target"),
    [
        ("PLAY MILES DAVIS .", "O artist artist O", "PLAY B-artist MILES DAVIS E-artist"),
        ("ROCK & ROLL", "O O O", "ROCK AND ROLL"),
        (
            "IN PARIS , FRANCE",
            "O city O country",
            "IN B-city PARIS E-city B-country FRANCE E-country",
        ),
        ("A B C", "x y x", "B-x A E-x B-y B E-y B-x C E-x"),
        ("A , B", "x O x", "B-x A E-x B-x B E-x"),
        ("A , B", "x x x", "B-x A B E-x"),
        ("PLAY , A", "O x x", "PLAY B-x A E-x"),
        ("A - ;", "x x O", "B-x A E-x"),
        ("HI ;", "O x", "HI"),
        ("WHAT ?! NOW .. PLEASE ?!.,;-", "O O O O O O", "WHAT NOW PLEASE"),
        ("A -- B", "x O x", "B-x A E-x B-x B E-x"),
        ("?A IT'S U.S.", "O O O", "?A IT'S U.S."),
    ],
)
def test_slot_symbols_enclose_sequences_and_punctuation_is_removed(words, slots, target):
    assert slot_target(words.split(), slots.split()) == target


@pytest.mark.parametrize(
    "line",
    ["BOS PLAY EOS O O PlayMusic", "BOS PLAY EOS\tO O", "PLAY EOS\tO PlayMusic"],
)
def test_a_malformed_annotation_is_named_with_its_line(snips, write_text, line):
    path = write_text(snips / "all.iob.snips.txt", f"Amy-snips-valid-0 {line}\n")
    with user_error("corpus-malformed", where=f"^{path}, line 1$"):
        AudioSnips(snips_root=snips).utterances("valid")


def test_an_unknown_slot_is_named(snips, write_text):
    write_text(snips / "slots.txt", "O\ncity\n")
    with user_error("label-unknown", fix=r"slots\.txt") as caught:
        AudioSnips(snips_root=snips).utterances("train")
    assert "'artist'" in caught.value.what


def test_problems_name_what_is_missing(snips, tmp_path):
    (snips / "slots.txt").unlink()
    (snips / "valid").rename(snips / "dev")
    problems = AudioSnips(snips_root=snips).problems()
    assert len(problems) == 2 and "slots.txt" in problems[0] and "valid" in problems[1]
    assert len(AudioSnips(snips_root=tmp_path / "nowhere").problems()) == 1


def all_findings(root):
    corpus = AudioSnips(snips_root=root)
    return [finding for split in corpus.splits for finding in corpus.findings(split)]


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".ogg"])
def test_a_second_format_is_left_out_with_one_warning_a_split(suffix, snips):
    corpus = AudioSnips(snips_root=snips)
    before = {split: corpus.utterances(split) for split in corpus.splits}
    for path in sorted(snips.rglob("*.wav")):
        (path.parent / f"{path.stem}{suffix}").write_bytes(path.read_bytes())
    assert {split: corpus.utterances(split) for split in corpus.splits} == before
    findings = all_findings(snips)
    assert [f.what.split()[0] for f in findings] == ["2", "1", "2"]
    assert {(f.code, f.certain) for f in findings} == {("corpus-duplicates", False)}


@pytest.mark.parametrize(
    ("annotation", "code", "certain"),
    [
        ("BOS PLAY MILES DAVIS EOS\tO O artist artist PlayMusic", "corpus-duplicates", False),
        ("BOS PLAY MILES  DAVIS EOS\tO O artist artist PlayMusic", "corpus-duplicates", False),
        ("BOS PLAY MILES DAVIS EOS\tO O O artist PlayMusic", "corpus-inconsistent", True),
        ("BOS PLAY MILES EOS\tO O artist PlayMusic", "corpus-inconsistent", True),
        ("BOS STOP MILES DAVIS EOS\tO O artist artist PlayMusic", "corpus-inconsistent", True),
    ],
)
def test_an_utterance_that_is_annotated_twice(annotation, code, certain, snips):
    path = snips / "all.iob.snips.txt"
    assert all_findings(snips) == []
    path.write_text(path.read_text() + f"Amy-snips-valid-0 {annotation}\n")
    (finding,) = all_findings(snips)
    assert (finding.code, finding.certain) == (code, certain)
    assert "lines 3 and 6: Amy-snips-valid-0" in finding.where


def test_audio_without_annotation_and_annotations_without_audio_are_warnings(snips, write_audio):
    write_audio(snips / "valid" / "Amy-snips-valid-9.wav")
    write_audio(snips / "valid" / "Stranger-snips-valid-9.wav")
    (snips / "test" / "Emma" / "Emma-snips-test-0.wav").unlink()
    unlabelled, absent = all_findings(snips)
    assert not unlabelled.certain and unlabelled.where.endswith("Amy-snips-valid-9.wav")
    assert not absent.certain and absent.where.endswith("line 4: Emma-snips-test-0")


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("-0 BOS", "-0\tBOS"), ("\n", "\n\n")])
def test_other_blanks_and_line_ends_give_the_same_utterances(change, snips):
    corpus = AudioSnips(snips_root=snips)
    before = [(u.id, u.labels) for split in corpus.splits for u in corpus.utterances(split)]
    for name in ("all.iob.snips.txt", "slots.txt"):
        (snips / name).write_bytes((snips / name).read_text().replace(*change).encode())
    found = [(u.id, u.labels) for split in corpus.splits for u in corpus.utterances(split)]
    assert found == before and corpus.label_space()["slots"] == ["artist", "city"]
