from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import soundfile

from downstream_plugins.sid.corpus import VoxCeleb1Identification
from downstream_plugins.sv.corpus import Trial, VoxCeleb1Verification, draw_trials
from s3prl_mtl.data import load_cuts
from tests.mistakes import user_error

DEV_SPEAKERS = ["id10001", "id10003", "id11251"]
TEST_SPEAKERS = ["id10270", "id10309"]


@pytest.fixture
def vox(tmp_path, write_audio, write_text):
    root = tmp_path / "VoxCeleb1"
    split_lines = []
    for part, speakers in (("dev", DEV_SPEAKERS), ("test", TEST_SPEAKERS)):
        for speaker in speakers:
            for code, video in (("1", "va"), ("1", "vb"), ("2", "vc"), ("3", "vd")):
                name = f"{speaker}/{video}/00001.wav"
                write_audio(root / part / "wav" / name)
                split_lines.append(f"{code} {name}")
    write_text(root / "iden_split.txt", "\n".join(reversed(split_lines)) + "\n")
    write_text(
        root / "veri_test2.txt",
        "1 id10270/va/00001.wav id10270/vb/00001.wav\n"
        "0 id10270/va/00001.wav id10309/va/00001.wav\n",
    )
    return root


def sid(root):
    return VoxCeleb1Identification(file_path=root, meta_data=root / "iden_split.txt")


def sv(root, **settings):
    return VoxCeleb1Verification(file_path=root, test_trials=root / "veri_test2.txt", **settings)


def test_sid_splits_are_the_codes_and_hold_speakers_of_both_folders(vox):
    corpus = sid(vox)
    assert corpus.problems() == []
    counts = {"train": 10, "dev": 5, "test": 5}
    for split, count in counts.items():
        found = corpus.utterances(split)
        assert len(found) == count and all(u.path.is_file() for u in found)
        assert {u.labels["class"] for u in found} == {*DEV_SPEAKERS, *TEST_SPEAKERS}
        assert all(u.id.startswith(u.labels["class"]) for u in found)


def test_sid_classes_are_the_sorted_ids(vox):
    classes = sid(vox).label_space()["classes"]
    assert classes == ["id10001", "id10003", "id10270", "id10309", "id11251"]


def test_sid_classes_of_voxceleb1_are_superbs_labels(vox, write_text):
    everybody = [f"id{number}" for number in range(10001, 11252)]
    assert len(everybody) == 1251
    lines = [f"1 {speaker}/v/00001.wav" for speaker in reversed(everybody)]
    write_text(vox / "iden_split.txt", "\n".join(lines))
    classes = sid(vox).label_space()["classes"]
    assert [classes.index(speaker) for speaker in everybody] == [
        int(speaker[2:]) - 10001 for speaker in everybody
    ]


def test_sid_a_malformed_line_is_named(vox, write_text):
    write_text(vox / "iden_split.txt", "1 id10001/va/00001.wav\n4 id10001/vb/00001.wav\n")
    with user_error("corpus-malformed", where=r"iden_split\.txt, line 2$"):
        sid(vox).utterances("train")


def test_sid_a_listed_file_that_is_gone_is_reported_by_its_path(vox, tmp_path):
    gone = vox / "dev/wav/id10001/vc/00001.wav"
    gone.unlink()
    with user_error("corpus-incomplete") as caught:
        load_cuts(sid(vox), "dev", tmp_path / "cache")
    assert str(gone) in str(caught.value)


def test_sv_trains_on_dev_speakers_without_the_40_test_speakers(vox, write_audio):
    for speaker in ("id10269", "id10270", "id10309", "id10310"):
        write_audio(vox / "dev" / "wav" / speaker / "va" / "00001.wav")
    speakers = [*DEV_SPEAKERS, "id10269", "id10310"]
    corpus = sv(vox)
    assert corpus.label_space() == {"speakers": sorted(speakers)}
    assert {u.labels["speaker"] for u in corpus.utterances("train")} == set(speakers)


def test_sv_test_holds_each_utterance_of_the_trials_once(vox):
    corpus = sv(vox)
    assert corpus.problems() == []
    assert corpus.trials("test") == [
        Trial(1, "id10270/va/00001.wav", "id10270/vb/00001.wav"),
        Trial(0, "id10270/va/00001.wav", "id10309/va/00001.wav"),
    ]
    found = corpus.utterances("test")
    assert [u.id for u in found] == [
        "id10270/va/00001.wav",
        "id10270/vb/00001.wav",
        "id10309/va/00001.wav",
    ]
    assert all(u.path == vox / "test" / "wav" / u.id for u in found)


def test_sv_dev_trials_are_drawn_from_training_speakers_half_of_them_target(vox):
    corpus = sv(vox)
    trials = corpus.trials("dev")
    assert trials == sv(vox).trials("dev")
    # 3 speakers of 4 utterances have 18 pairs of one speaker and 48 of two.
    assert sum(t.label for t in trials) == 18 and len(trials) == 36
    assert len({frozenset((t.first_id, t.second_id)) for t in trials}) == 36
    for trial in trials:
        assert trial.first_id != trial.second_id
        same = trial.first_id.split("/")[0] == trial.second_id.split("/")[0]
        assert same == bool(trial.label)
        assert trial.first_id.split("/")[0] in DEV_SPEAKERS
    ids = {u.id for u in corpus.utterances("dev")}
    assert ids == {name for t in trials for name in (t.first_id, t.second_id)}


def test_sv_dev_trials_of_a_large_corpus_are_20_000_of_40_speakers():
    names = [f"id{10001 + s}/v/{i:05d}.wav" for s in range(60) for i in range(30)]
    trials = draw_trials(names)
    assert len(trials) == len(set(trials)) == 20_000
    assert sum(trial.label for trial in trials) == 10_000
    assert len({t.first_id.split("/")[0] for t in trials}) == 40


def test_sv_dev_trials_may_need_all_pairs_of_two_speakers():
    names = ["a/v/1", "a/v/2", "a/v/3", "a/v/4", "b/v/1"]
    trials = draw_trials(names)
    different = {(t.first_id, t.second_id) for t in trials if t.label == 0}
    assert different == {p for p in combinations(names, 2) if p[1] == "b/v/1"}


def test_sv_dev_trials_of_a_file_are_taken_as_they_are(vox, write_text):
    path = write_text(vox / "dev.txt", "0 id10001/va/00001.wav id10003/va/00001.wav\n")
    corpus = sv(vox, dev_trials=path)
    assert corpus.trials("dev") == [Trial(0, "id10001/va/00001.wav", "id10003/va/00001.wav")]
    assert len(corpus.utterances("dev")) == 2


@pytest.mark.parametrize("line", ["2 a/v/1.wav b/v/1.wav", "1 a/v/1.wav", "0 a b c"])
def test_sv_a_malformed_trial_is_named_with_its_line(vox, write_text, line):
    write_text(vox / "veri_test2.txt", f"\n{line}\n")
    with user_error("corpus-malformed", where=r"veri_test2\.txt, line 2$"):
        sv(vox).trials("test")


def test_sv_training_excludes_utterances_too_short_after_trimming(vox, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 16_000)
    silence = np.zeros(2 * 16_000)
    folder = vox / "dev" / "wav" / "id10001"
    soundfile.write(folder / "va" / "00001.wav", noise, 16_000)
    # As long, but a second of speech in two of silence.
    soundfile.write(
        folder / "vb" / "00001.wav", np.concatenate([silence, noise[:16_000], silence]), 16_000
    )
    cuts = load_cuts(sv(vox), "train", tmp_path / "cache")
    assert [cut.id for cut in cuts] == ["id10001/va/00001.wav"]


def test_problems_name_missing_folders_and_lists(vox, tmp_path):
    (vox / "veri_test2.txt").unlink()
    (vox / "test").rename(vox / "elsewhere")
    problems = sv(vox).problems()
    assert len(problems) == 2 and "datarc.test_trials" in problems[1]
    assert str(vox / "test" / "wav") in problems[0]
    assert len(sid(tmp_path / "nowhere").problems()) == 2
