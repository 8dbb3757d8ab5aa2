from __future__ import annotations

from collections import Counter

import pytest
import torch

from downstream_plugins.er.corpus import IEMOCAP
from downstream_plugins.er.dialogue_order import DIALOGUES
from s3prl_mtl.data import load_cuts
from s3prl_mtl.data.scanning import UNDECODABLE
from tests.mistakes import user_error

EMOTIONS = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx", "sur"]
KEPT = ["neu", "hap", "exc", "ang", "sad"]


@pytest.fixture
def iemocap(tmp_path, write_audio, write_text):
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        for dialogue in (f"Ses{session:02d}F_impro01", f"Ses{session:02d}M_script01_1"):
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for number, emotion in enumerate(EMOTIONS):
                name = f"{dialogue}_{'FM'[number % 2]}{number:03d}"
                lines.append(f"[6.29 - 8.23]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]")
                lines.append("C-E2:\tNeutral;\t()")
                folder = root / f"Session{session}"
                write_audio(folder / "sentences" / "wav" / dialogue / f"{name}.wav")
            labels = root / f"Session{session}" / "dialog" / "EmoEvaluation"
            write_text(labels / f"{dialogue}.txt", "\n".join(lines) + "\n")
            (labels / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07 not text \xff")
            write_text(labels / "Categorical" / f"{dialogue}_cat.txt", "[ignored]\tx\tneu\t[]\n")
    return root


def test_test_is_the_held_out_session_and_excitement_is_happiness(iemocap):
    corpus = IEMOCAP(root=iemocap, test_fold="fold3")
    assert corpus.problems() == []
    found = corpus.utterances("test")
    assert all("Session3" in str(u.path) and u.path.is_file() for u in found)
    counts = Counter(u.labels["class"] for u in found)
    assert counts == {"neu": 2, "hap": 4, "ang": 2, "sad": 2}


def test_train_and_dev_are_a_random_split_of_the_other_sessions(iemocap):
    corpus = IEMOCAP(root=iemocap)
    everything = [
        f"{dialogue}_{'FM'[EMOTIONS.index(emotion) % 2]}{EMOTIONS.index(emotion):03d}"
        for session in range(2, 6)
        for dialogue in sorted(
            (f"Ses{session:02d}F_impro01", f"Ses{session:02d}M_script01_1"), key=DIALOGUES.index
        )
        for emotion in sorted(KEPT, key=EMOTIONS.index)
    ]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    lengths = [int((1 - 0.2) * len(everything)), len(everything) - int((1 - 0.2) * len(everything))]
    train, dev = torch.utils.data.random_split(everything, lengths)
    torch.set_rng_state(state)
    assert [u.id for u in corpus.utterances("train")] == list(train)
    assert [u.id for u in corpus.utterances("dev")] == list(dev)
    assert len(dev) == 8


def test_drawing_dev_leaves_the_global_random_state_alone(iemocap):
    state = torch.get_rng_state()
    IEMOCAP(root=iemocap).utterances("dev")
    assert torch.equal(torch.get_rng_state(), state)


def test_dialogues_are_in_the_order_of_superbs_lists():
    assert len(DIALOGUES) == len(set(DIALOGUES)) == 151
    by_session = Counter(name[:5] for name in DIALOGUES)
    assert list(by_session.values()) == [28, 30, 32, 30, 31]
    # The first utterance of each of SUPERB's test lists is of these dialogues.
    firsts = [next(d for d in DIALOGUES if d.startswith(f"Ses{s:02d}")) for s in range(1, 6)]
    assert firsts == [
        "Ses01F_script02_2",
        "Ses02F_impro03",
        "Ses03F_script02_1",
        "Ses04F_script03_1",
        "Ses05M_script01_3",
    ]


def test_classes_are_in_superbs_order(iemocap):
    assert IEMOCAP(root=iemocap).label_space() == {"classes": ["neu", "hap", "ang", "sad"]}


@pytest.mark.parametrize(
    ("setting", "value"), [("test_fold", "fold6"), ("valid_ratio", 0.0), ("valid_ratio", 20)]
)
def test_settings_out_of_range_are_errors(tmp_path, setting, value):
    code = "unknown-name" if setting == "test_fold" else "invalid-value"
    with user_error(code, where=rf"datarc\.{setting}"):
        IEMOCAP(root=tmp_path, **{setting: value})


def test_problems_name_missing_sessions(iemocap):
    (iemocap / "Session4").rename(iemocap / "Sitzung4")
    problems = IEMOCAP(root=iemocap).problems()
    assert len(problems) == 2 and all("Session4" in problem for problem in problems)


def rewrite(path, change):
    path.write_bytes(change(path.read_text()).encode())


def label_files(root, session="*"):
    return sorted(root.glob(f"Session{session}/dialog/EmoEvaluation/S*.txt"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("\t", "    "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("[6.29 - 8.23]", "[6.29-8.23]"),
    ],
)
def test_lines_of_labels_may_have_other_blanks_and_line_ends(change, iemocap):
    corpus = IEMOCAP(root=iemocap)
    before = [corpus.utterances(split) for split in corpus.splits]
    for path in label_files(iemocap):
        rewrite(path, change)
    assert [corpus.utterances(split) for split in corpus.splits] == before
    assert [f for split in corpus.splits for f in corpus.findings(split)] == []


@pytest.mark.parametrize("spelling", ["NEU", "Neutral", "neutral", "calm"])
def test_labels_in_another_spelling_are_an_error(spelling, iemocap):
    for path in label_files(iemocap, 3):
        rewrite(path, lambda text: text.replace("\tneu\t", f"\t{spelling}\t"))
    (finding,) = IEMOCAP(root=iemocap).findings("train")
    assert finding.certain and finding.code == "label-unknown"
    assert finding.what.startswith("2 of 64") and spelling in finding.what
    assert finding.where in {f"{path}, line 3" for path in label_files(iemocap, 3)}
    (finding,) = IEMOCAP(root=iemocap, test_fold="fold3").findings("test")
    assert finding.certain and finding.what.startswith("2 of 16")


@pytest.mark.parametrize("content", ["", "% only a heading\n", "[1 - 2]\tSes02F_x\tfru\t[]\n"])
def test_a_session_without_usable_labels_is_an_error(content, iemocap):
    for path in label_files(iemocap, 2):
        path.write_text(content)
    finding = IEMOCAP(root=iemocap).findings("train")[0]
    assert finding.certain and "Session 2" in finding.what
    assert IEMOCAP(root=iemocap).findings("test") == []


def test_a_dialogue_without_labels_is_a_warning(iemocap):
    path = label_files(iemocap, 2)[0]
    path.write_text("")
    empty, unlabelled = IEMOCAP(root=iemocap).findings("train")
    assert not empty.certain and empty.where == str(path)
    assert not unlabelled.certain and unlabelled.what.startswith("8 of 16")


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_converted_audio_is_found(suffix, iemocap):
    for path in sorted(iemocap.rglob("*.wav")):
        path.rename(path.with_suffix(suffix))
    found = IEMOCAP(root=iemocap).utterances("train")
    assert all(u.path.is_file() and u.path.suffix == suffix for u in found)


def test_a_listed_file_that_is_gone_is_reported_with_its_line(iemocap, tmp_path):
    path = next(iemocap.glob("Session1/sentences/wav/*/*_F000.wav"))
    path.rename(path.with_suffix(".m4a"))
    with user_error("corpus-incomplete", where=r"EmoEvaluation/Ses01\w+\.txt, line 3") as caught:
        load_cuts(IEMOCAP(root=iemocap), "test", tmp_path / "cache")
    assert f".m4a {UNDECODABLE}" in str(caught.value)
