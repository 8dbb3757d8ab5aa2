from __future__ import annotations

import re
import shutil
from itertools import combinations

import numpy as np
import pytest
import soundfile

from downstream_plugins.sid.corpus import VoxCeleb1Identification
from downstream_plugins.sv.corpus import Trial, VoxCeleb1Verification, draw_trials
from s3prl_mtl.data import load_cuts
from s3prl_mtl.data.scanning import UNDECODABLE
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


@pytest.mark.parametrize(
    "line", ["2 id10001/v/1.wav id10003/v/1.wav", "1 id10001/v/1.wav", "0 a b c"]
)
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
    shutil.rmtree(vox / "dev")
    shutil.rmtree(vox / "test")
    problems = sv(vox).problems()
    assert len(problems) == 2 and "datarc.test_trials" in problems[1]
    assert str(vox) in problems[0] and "id10001" in problems[0]
    assert len(sid(tmp_path / "nowhere").problems()) == 2


def flat(root):
    for part in ("dev", "test"):
        for folder in (root / part / "wav").iterdir():
            shutil.move(folder, root / "wav" / folder.name)
        shutil.rmtree(root / part)


def archive_names(root):
    for part in ("dev", "test"):
        (root / f"vox1_{part}_wav").mkdir()
        (root / part / "wav").rename(root / f"vox1_{part}_wav" / "wav")


def links_to_one_folder(root):
    flat(root)
    (root / "wav").rename(root / "all")
    for part in ("dev", "test"):
        (root / part).mkdir(exist_ok=True)
        (root / part / "wav").symlink_to(root / "all")


def links_outside(root):
    outside = root.parent / "disk2"
    for part in ("dev", "test"):
        outside.joinpath(part).mkdir(parents=True)
        (root / part / "wav").rename(outside / part / "w")
        (root / part / "wav").symlink_to(outside / part / "w")


def directly_below(root):
    flat(root)
    for folder in (root / "wav").iterdir():
        shutil.move(folder, root / folder.name)
    (root / "wav").rmdir()


LAYOUTS = [flat, archive_names, links_to_one_folder, links_outside, directly_below]


@pytest.mark.parametrize("change", LAYOUTS)
def test_utterances_do_not_depend_on_the_layout(change, vox):
    corpora = {"sid": sid, "sv": sv}
    before = {
        (task, split): [(u.id, u.labels) for u in make(vox).utterances(split)]
        for task, make in corpora.items()
        for split in ("train", "dev", "test")
    }
    change(vox)
    for (task, split), expected in before.items():
        corpus = corpora[task](vox)
        assert corpus.problems() == []
        found = corpus.utterances(split)
        assert [(u.id, u.labels) for u in found] == expected
        assert all(u.path.is_file() for u in found)
    assert sv(vox).label_space() == {"speakers": DEV_SPEAKERS}
    assert sv(vox).findings("train") == sid(vox).findings("train") == []


@pytest.mark.parametrize("change", LAYOUTS)
def test_the_log_says_how_many_files_are_where(change, vox):
    def numbers():
        (line,) = sv(vox).notes()
        return [int(number) for number in re.findall(r"(\d+) files of", line)]

    assert numbers() == [12, 8]
    change(vox)
    assert sum(numbers()) == 20
    assert len(numbers()) == (2 if change in (archive_names, links_outside) else 1)


@pytest.mark.parametrize("folder", ["dev/wav", "wav", "vox1_dev_wav/wav", "."])
def test_the_40_test_speakers_never_train_sv(folder, vox, write_audio):
    for number in (*range(10270, 10310), 10269, 10310):
        write_audio(vox / folder / f"id{number}" / "va" / "00001.wav")
    trained = {u.labels["speaker"] for u in sv(vox).utterances("train")}
    assert trained == {*DEV_SPEAKERS, "id10269", "id10310"}


@pytest.mark.parametrize("folder", ["dev/wav/A.J._Buckley", "dev/wav/id1001", "dev/txt", "backup"])
def test_folders_that_are_no_speakers_are_ignored_with_one_warning(folder, vox, write_audio):
    before = sv(vox).utterances("train")
    write_audio(vox / folder / "va" / "00001.wav")
    write_audio(vox / folder / "vb" / "00001.wav")
    assert sv(vox).utterances("train") == before
    if folder == "dev/wav/A.J._Buckley" or folder == "dev/wav/id1001":
        (finding,) = sv(vox).findings("train")
        assert not finding.certain and finding.where == str(vox / folder)
        assert sv(vox).findings("test") == []


def test_speakers_under_their_names_of_the_first_release_are_a_problem(vox):
    for part in ("dev", "test"):
        for number, folder in enumerate(sorted((vox / part / "wav").iterdir())):
            folder.rename(folder.with_name(f"Celebrity_{part}{number}"))
    for corpus in (sid(vox), sv(vox)):
        (problem,) = corpus.problems()
        assert "id10001" in problem and "Celebrity_dev0" in problem


@pytest.mark.parametrize("name", ["A.J._Buckley/v/00001.wav", "id20001/v/00001.wav", "x/1.wav"])
def test_lists_with_other_names_of_speakers_are_errors(name, vox, write_text):
    write_text(
        vox / "veri_test2.txt", f"1 id10270/va/00001.wav id10270/vb/00001.wav\n1 {name} {name}"
    )
    with user_error("corpus-malformed", where=r"veri_test2\.txt, line 2$", fix="id10001"):
        sv(vox).utterances("test")
    write_text(vox / "iden_split.txt", f"1 {name}\n")
    with user_error("corpus-malformed", where=r"iden_split\.txt, line 1$", fix="id10001"):
        sid(vox).utterances("train")


def convert(root, suffix, keep=False):
    for path in sorted(root.rglob("*.wav")):
        if path.is_file():
            soundfile.write(path.with_suffix(suffix), *soundfile.read(path))
            if not keep:
                path.unlink()


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_converted_audio_is_found_by_the_names_of_the_lists(suffix, vox):
    before = [u.id for make in (sid, sv) for s in make(vox).splits for u in make(vox).utterances(s)]
    convert(vox, suffix)
    found = [u for make in (sid, sv) for s in make(vox).splits for u in make(vox).utterances(s)]
    assert [u.id for u in found] == before
    assert all(u.path.is_file() and u.path.suffix == suffix for u in found)


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".aiff"])
def test_a_second_format_does_not_double_the_corpus(suffix, vox):
    before = {s: sv(vox).utterances(s) for s in sv(vox).splits}
    convert(vox, suffix, keep=True)
    assert {s: sv(vox).utterances(s) for s in sv(vox).splits} == before
    findings = sv(vox).findings("train")
    assert [f.what.split()[0] for f in findings] == ["12", "8"]
    assert {(f.code, f.certain) for f in findings} == {("corpus-duplicates", False)}


def test_m4a_is_named_as_what_cannot_be_read(vox, tmp_path):
    for path in sorted(vox.rglob("*.wav")):
        if path.is_file():
            path.rename(path.with_suffix(".m4a"))
    for corpus, split in ((sid(vox), "dev"), (sv(vox), "train")):
        with user_error("corpus-incomplete", where=rf"\.m4a {UNDECODABLE}"):
            load_cuts(corpus, split, tmp_path / "cache")
    with user_error("corpus-incomplete", where=r"iden_split\.txt, line \d+"):
        load_cuts(sid(vox), "train", tmp_path / "cache")


@pytest.mark.parametrize("kept", [0, 13, 19])
def test_sid_files_that_the_list_lacks_are_one_warning(kept, vox):
    lines = (vox / "iden_split.txt").read_text().splitlines()
    (vox / "iden_split.txt").write_text("\n".join(lines[:kept]))
    (finding,) = sid(vox).findings("train")
    assert not finding.certain and re.findall(r"\d+", finding.what) == [str(20 - kept)]
