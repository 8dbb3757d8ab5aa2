from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from downstream_plugins.ks.corpus import CLASSES, KEYWORDS, SpeechCommands, hashed_split
from tests.mistakes import user_error

SPEAKERS = [f"{i:08x}" for i in range(60)]


@pytest.fixture
def speech_commands(tmp_path, write_audio):
    root, test_root = tmp_path / "sc", tmp_path / "sc_test"
    for word in ("yes", "no", "bed"):
        for speaker in SPEAKERS:
            write_audio(root / word / f"{speaker}_nohash_0.wav")
    for i in range(6):
        write_audio(root / "_background_noise_" / f"noise{i}.wav", seconds=2.0)
    (root / "_background_noise_" / "README.md").write_text("noise")
    for name in ("yes", "_unknown_", "_silence_"):
        write_audio(test_root / name / "a.wav")
    for word in KEYWORDS:
        (root / word).mkdir(exist_ok=True)
    for name in CLASSES:
        (test_root / name).mkdir(exist_ok=True)
    return SpeechCommands(speech_commands_root=root, speech_commands_test_root=test_root)


def percentage(speaker):
    """The rule as the data set's README writes it."""
    number = int(hashlib.sha1(speaker.encode("utf-8")).hexdigest(), 16)
    return (number % 134217728) * (100.0 / 134217727)


def test_the_split_is_the_hash_of_the_speaker():
    for speaker in SPEAKERS:
        expected = "dev" if percentage(speaker) < 10 else "train"
        if 10 <= percentage(speaker) < 20:
            expected = None
        for take in range(3):
            assert hashed_split(f"{speaker}_nohash_{take}.wav") == expected


@pytest.mark.parametrize(
    ("speaker", "split"),
    [
        *[(speaker, "dev") for speaker in ("026290a7", "060cd039", "099d52ad")],
        *[(speaker, None) for speaker in ("0c40e715", "0ea0e2f4", "105a0eea")],
    ],
)
def test_speakers_are_in_the_splits_of_the_published_lists(speaker, split):
    """From validation_list.txt and testing_list.txt, which come with the data set."""
    assert hashed_split(f"{speaker}_nohash_0.wav") == split


def test_an_incomplete_corpus_is_a_problem(speech_commands):
    (speech_commands.root / "go").rmdir()
    (speech_commands.test_root / "up").rmdir()
    train, test = speech_commands.problems()
    for problem, absent in ((train, "go"), (test, "up")):
        listed, _, _ = problem.partition(";")
        assert listed.endswith(f" {absent}") and "," not in listed


def test_words_beyond_the_ten_are_unknown_and_noise_is_silence(speech_commands):
    assert speech_commands.problems() == []
    shares = {"train": range(20, 101), "dev": range(10)}
    for split, wanted in shares.items():
        speakers = [s for s in SPEAKERS if int(percentage(s)) in wanted]
        assert speakers
        found = speech_commands.utterances(split)
        assert Counter(u.labels["class"] for u in found) == {
            "yes": len(speakers),
            "no": len(speakers),
            "_unknown_": len(speakers),
            "_silence_": 6,
        }
        assert {u.id for u in found if u.labels["class"] == "yes"} == {
            f"yes-{s}_nohash_0" for s in speakers
        }
        for utterance in found:
            silence = utterance.labels["class"] == "_silence_"
            assert utterance.labels.get("random_second", False) is silence
            assert (utterance.path.parent.name == "_background_noise_") is silence


def test_no_speaker_is_in_train_and_dev(speech_commands):
    train, dev = (
        {u.path.name for u in speech_commands.utterances(split) if "nohash" in u.path.name}
        for split in ("train", "dev")
    )
    assert train and dev and not train & dev


def test_test_classes_are_the_folders_of_the_test_set(speech_commands):
    found = speech_commands.utterances("test")
    assert [u.labels for u in found] == [
        {"class": "_silence_"},
        {"class": "_unknown_"},
        {"class": "yes"},
    ]


def test_an_unknown_folder_in_the_test_set_is_an_error(speech_commands, write_audio):
    write_audio(speech_commands.test_root / "bed" / "a.wav")
    with user_error("corpus-malformed", where=str(speech_commands.test_root)) as caught:
        speech_commands.utterances("test")
    assert "'bed'" in caught.value.what


def test_classes_are_in_superbs_order(speech_commands):
    classes = speech_commands.label_space()["classes"]
    assert " ".join(classes) == "yes no up down left right on off stop go _unknown_ _silence_"
    assert classes == list(CLASSES)


def test_problems_name_path_expectation_and_setting(tmp_path):
    corpus = SpeechCommands(speech_commands_root=tmp_path / "a", speech_commands_test_root=tmp_path)
    train, test = corpus.problems()
    for problem, path, setting in (
        (train, tmp_path / "a", "speech_commands_root"),
        (test, tmp_path, "speech_commands_test_root"),
    ):
        assert problem.startswith(f"ks: {path} ") and corpus.title in problem
        assert "`--data`" in problem and f"`datarc.{setting}`" in problem
    assert train.count(str(tmp_path)) == 2, "what is there instead"
    assert ", ".join(CLASSES) in test


def findings_of(corpus, split):
    """Without those about the words that have no file here."""
    return [f for f in corpus.findings(split) if f.code != "corpus-incomplete"]


def labels_of(corpus):
    return {s: [(u.id, u.labels) for u in corpus.utterances(s)] for s in corpus.splits}


@pytest.mark.parametrize("layout", ["in the parent", "one level below"])
def test_archives_may_be_unpacked_above_or_below_the_configured_folder(
    layout, speech_commands, tmp_path
):
    before = labels_of(speech_commands)
    moved = []
    for name, root in (("a/sc", speech_commands.root), ("b/sc_test", speech_commands.test_root)):
        configured = tmp_path / name
        configured.parent.mkdir()
        if layout == "in the parent":
            configured.parent.rmdir()
            root.rename(configured.parent)
        else:
            configured.mkdir()
            root.rename(configured / configured.name)
        moved.append(configured)
    corpus = SpeechCommands(speech_commands_root=moved[0], speech_commands_test_root=moved[1])
    assert corpus.problems() == []
    assert labels_of(corpus) == before
    assert [f for split in corpus.splits for f in findings_of(corpus, split)] == []


@pytest.mark.parametrize("names", [["_silence_"], ["_unknown_"], ["_silence_", "_unknown_"]])
def test_folders_of_the_test_classes_among_the_words_are_an_error(
    names, speech_commands, write_audio
):
    before = labels_of(speech_commands)
    for name in names:
        write_audio(speech_commands.root / name / f"{SPEAKERS[0]}_nohash_0.wav")
    (finding,) = findings_of(speech_commands, "train")
    assert finding.certain and finding.where == str(speech_commands.root / names[0])
    assert labels_of(speech_commands) == before


@pytest.mark.parametrize("names", [["backward"], ["Yes", "misc"], ["forward", "learn", "visual"]])
def test_folders_that_are_no_words_are_ignored_with_one_warning(
    names, speech_commands, write_audio
):
    before = labels_of(speech_commands)
    for name in names:
        write_audio(speech_commands.root / name / f"{SPEAKERS[0]}_nohash_0.wav")
    (finding,) = findings_of(speech_commands, "train")
    assert not finding.certain and re.findall(r"\d+", finding.what)[0] == str(len(names))
    assert [findings_of(speech_commands, split) for split in ("dev", "test")] == [[], []]
    assert labels_of(speech_commands) == before


def test_files_of_another_form_are_a_warning(speech_commands, write_audio):
    write_audio(speech_commands.root / "yes" / "my recording.wav")
    (finding,) = findings_of(speech_commands, "train")
    assert not finding.certain and finding.where == str(
        speech_commands.root / "yes" / "my recording.wav"
    )


@pytest.mark.parametrize("left", [None, "README.md", "noise.txt"])
def test_background_noise_without_audio_is_a_problem(left, speech_commands):
    folder = speech_commands.root / "_background_noise_"
    for path in folder.iterdir():
        path.unlink()
    if left is not None:
        (folder / left).write_text("noise")
    (problem,) = speech_commands.problems()
    assert str(folder) in problem and "datarc.speech_commands_root" in problem


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_a_second_format_does_not_double_the_corpus(suffix, speech_commands):
    before = labels_of(speech_commands)
    for path in sorted(speech_commands.root.rglob("*.wav")):
        path.with_suffix(suffix).write_bytes(path.read_bytes())
    assert labels_of(speech_commands) == before
    (finding,) = findings_of(speech_commands, "train")
    count = len(list(speech_commands.root.rglob("*.wav")))
    assert not finding.certain and re.findall(r"\d+", finding.what)[0] == str(count)
