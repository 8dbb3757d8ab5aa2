from __future__ import annotations

import numpy as np
import pytest
import torch

from downstream_plugins.sd.corpus import Libri2Mix, chunks, frame_labels
from s3prl_mtl.data import load_cuts, load_waveform
from tests.mistakes import user_error


@pytest.fixture
def mix(tmp_path, write_audio, write_text):
    root = tmp_path / "Libri2Mix"
    for split in ("train", "dev", "test"):
        folder = root / split
        write_audio(folder / "wav" / "rec1.wav", seconds=3.217)
        write_audio(folder / "wav" / "rec2.wav", seconds=1.0)
        absolute = folder / "wav" / "rec2.wav"
        write_text(folder / "wav.scp", f"rec1 wav/rec1.wav\nrec2 {absolute}\n")
        write_text(
            folder / "segments",
            "z_rec1_a rec1 0.004 1.255\na_rec1_b rec1 0.906 3.2\nz_rec1_c rec1 2.0 2.5\n"
            "q_rec2 rec2 0.0 0.5\n",
        )
        write_text(folder / "utt2spk", "z_rec1_a zoe\na_rec1_b al\nz_rec1_c zoe\nq_rec2 quin\n")
        write_text(folder / "reco2dur", "rec1 3.217\nrec2 1.0\n")
    return root


SEGMENTS = [[1, 0.004, 1.255], [0, 0.906, 3.2], [1, 2.0, 2.5]]


def test_dev_and_test_are_whole_recordings(mix):
    corpus = Libri2Mix(data_dir=mix)
    assert corpus.problems() == []
    for split in ("dev", "test"):
        first, second = corpus.utterances(split)
        assert first.id == "rec1" and first.path == mix / split / "wav" / "rec1.wav"
        assert first.labels["segments"] == SEGMENTS
        assert (first.labels["start_frame"], first.labels["frames"]) == (0, 321)
        assert second.labels["segments"] == [[0, 0.0, 0.5]]


def test_train_is_chunks_including_a_shorter_last_one(mix):
    corpus = Libri2Mix(data_dir=mix, chunk_size=100)
    found = [u for u in corpus.utterances("train") if u.labels["recording"] == "rec1"]
    assert [(u.labels["start_frame"], u.labels["frames"]) for u in found] == [
        (0, 100),
        (100, 100),
        (200, 100),
        (300, 21),
    ]
    assert [(u.start_seconds, u.duration_seconds) for u in found][1:] == [
        (1.0, 1.0),
        (2.0, 1.0),
        (3.0, 0.21),
    ]
    assert len({u.id for u in corpus.utterances("train")}) == 5


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        (2000, [(0, 2000)]),
        (4321, [(0, 2000), (2000, 4000), (4000, 4321)]),
        (2002, [(0, 2000)]),  # two frames are 320 samples: nothing for the encoder
        (2003, [(0, 2000), (2000, 2003)]),
        (1234, [(0, 1234)]),
    ],
)
def test_chunks_are_2000_frames(frames, parts):
    assert list(chunks(frames, 2000, 160)) == parts


def test_chunks_cover_the_recording(mix, tmp_path):
    cuts = list(load_cuts(Libri2Mix(data_dir=mix, chunk_size=100), "train", tmp_path / "c"))
    whole = load_waveform(next(iter(load_cuts(Libri2Mix(data_dir=mix), "dev", tmp_path / "c"))))
    parts = [load_waveform(cut) for cut in cuts if cut.custom["labels"]["recording"] == "rec1"]
    assert whole.shape == (321 * 160,)
    assert torch.equal(torch.cat(parts), whole)


def brute_force_labels(segments, start_frame, frames):
    """Frame by frame: inside a segment whose ends are rounded to frames, halves to even."""
    labels = np.zeros((frames, 2))
    for speaker, start, end in segments:
        first, last = np.rint(start * 16_000 / 160), np.rint(end * 16_000 / 160)
        for frame in range(frames):
            if first <= start_frame + frame < last:
                labels[frame, speaker] = 1
    return labels


def test_frame_labels_round_segment_ends_and_clip_them_to_the_stretch():
    generator = np.random.default_rng(0)
    for _ in range(50):
        segments = [
            [int(generator.integers(2)), *sorted(generator.uniform(0, 4, 2).round(3).tolist())]
            for _ in range(4)
        ]
        for start_frame, frames in [(0, 400), (100, 100), (317, 83)]:
            labels = frame_labels(segments, start_frame, frames)
            expected = brute_force_labels(segments, start_frame, frames)
            np.testing.assert_array_equal(labels.numpy(), expected)


def test_frame_labels_of_chunks_are_those_of_the_recording():
    whole = frame_labels(SEGMENTS, 0, 321)
    parts = [frame_labels(SEGMENTS, start, min(100, 321 - start)) for start in range(0, 321, 100)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == torch.float32 and whole[0].tolist() == [0.0, 1.0]


def test_halves_round_to_the_even_frame():
    labels = frame_labels([[0, 0.125, 0.135]], 0, 20)  # 12.5 and 13.5 frames
    assert labels[:, 0].nonzero().flatten().tolist() == [12, 13]


def test_label_space_is_the_number_of_speakers(mix):
    assert Libri2Mix(data_dir=mix).label_space() == {"speakers_per_recording": 2}


def test_a_recording_with_more_speakers_is_an_error_that_names_them(mix, write_text):
    text = "z_rec1_a zoe\na_rec1_b al\nz_rec1_c carl\nq_rec2 quin\n"
    write_text(mix / "dev" / "utt2spk", text)
    with user_error("invalid-value", fix=r"datarc\.num_speakers") as caught:
        Libri2Mix(data_dir=mix).utterances("dev")
    assert "al, carl, zoe" in caught.value.what


def test_commands_in_wav_scp_are_refused(mix, write_text, tmp_path):
    write_text(mix / "dev" / "wav.scp", f"rec1 touch {tmp_path / 'ran'} |\n")
    with user_error("not-supported", where=r"wav\.scp"):
        Libri2Mix(data_dir=mix).utterances("dev")
    assert not (tmp_path / "ran").exists()


def test_a_recording_shorter_than_its_side_files_say_is_not_used(mix, write_audio, tmp_path):
    write_audio(mix / "dev" / "wav" / "rec1.wav", seconds=1.5)
    with user_error("corpus-incomplete") as caught:
        load_cuts(Libri2Mix(data_dir=mix), "dev", tmp_path / "cache")
    assert "1.50 s" in str(caught.value) and "3.21 s" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "code", "where"),
    [
        ("segments", "u rec1 0.0\n", "corpus-malformed", "/segments, line 1$"),
        ("segments", "u rec1 0.0 1.0\n", "corpus-incomplete", "/segments, line 1$"),
        ("segments", "z_rec1_a rec1 0.0 late\n", "corpus-malformed", "/segments, z_rec1_a$"),
        ("reco2dur", "rec1 3.217\n", "corpus-incomplete", "/reco2dur$"),
        ("utt2spk", "z_rec1_a\n", "corpus-malformed", "/utt2spk, line 1$"),
    ],
)
def test_malformed_side_files_are_named(mix, write_text, name, text, code, where):
    write_text(mix / "test" / name, text)
    with user_error(code, where):
        Libri2Mix(data_dir=mix).utterances("test")


def test_problems_name_missing_tables(mix):
    (mix / "dev" / "segments").unlink()
    (problem,) = Libri2Mix(data_dir=mix).problems()
    assert str(mix / "dev" / "segments") in problem and "datarc.data_dir" in problem


def all_findings(root):
    corpus = Libri2Mix(data_dir=root)
    return [finding for split in corpus.splits for finding in corpus.findings(split)]


def append(path, line):
    path.write_text(path.read_text() + f"{line}\n")


def test_a_sound_corpus_has_no_findings(mix):
    assert all_findings(mix) == []
    assert Libri2Mix(data_dir=mix).notes() == []


@pytest.mark.parametrize(
    ("name", "line", "code", "certain", "where"),
    [
        ("segments", "q2 rec9 0.0 0.5", "corpus-inconsistent", True, "line 5: q2 of rec9"),
        ("segments", "q2 rec2.wav 0.0 0.5", "corpus-inconsistent", True, "line 5: q2"),
        ("segments", "q2 rec1 3.0 33.2", "corpus-inconsistent", True, "line 5: q2 of rec1"),
        ("segments", "q2 rec2 0.5 1.11", "corpus-inconsistent", True, "line 5: q2 of rec2"),
        ("segments", "q2 rec2 0.5 1.05", "corpus-inconsistent", False, "line 5: q2 of rec2"),
        ("segments", "q2 rec2 0.5 0.5", "corpus-inconsistent", True, "line 5: q2 of rec2"),
        ("segments", "q2 rec2 0.5 0.4", "corpus-inconsistent", True, "line 5: q2 of rec2"),
        ("segments", "q_rec2 rec2 0.5 0.7", "corpus-inconsistent", False, "line 4: q_rec2"),
        ("wav.scp", "rec1 wav/rec2.wav", "corpus-inconsistent", True, "lines 1 and 3: rec1"),
        ("wav.scp", "rec1 wav/rec1.wav", "corpus-duplicates", False, "lines 1 and 3: rec1"),
        ("reco2dur", "rec1 1.0", "corpus-inconsistent", True, "lines 1 and 3: rec1"),
        ("utt2spk", "q_rec2 zoe", "corpus-inconsistent", True, "lines 4 and 5: q_rec2"),
    ],
)
def test_tables_that_contradict_each_other(name, line, code, certain, where, mix):
    append(mix / "train" / name, line)
    (finding,) = all_findings(mix)
    assert (finding.code, finding.certain) == (code, certain)
    assert f"{mix / 'train' / name}, {where}" in finding.where


@pytest.mark.parametrize(("kept", "certain"), [(3, False), (0, True)])
def test_recordings_without_segments_are_counted(kept, certain, mix):
    path = mix / "train" / "segments"
    lines = path.read_text().splitlines()[:kept]
    path.write_text("\n".join(lines))
    (finding,) = all_findings(mix)
    assert finding.certain is certain and finding.code == "corpus-incomplete"
    assert finding.what.startswith("1 of 2" if kept else "2 of 2")


@pytest.mark.parametrize(
    ("seconds", "count"), [(3.217, 0), (3.217 + 0.09, 0), (3.217 + 0.2, 1), (40.0, 1)]
)
def test_audio_that_is_longer_than_its_duration_is_an_error(seconds, count, mix):
    audio = {"rec1": seconds, "rec2": 1.0}
    findings = Libri2Mix(data_dir=mix).duration_findings("dev", audio)
    assert [finding.certain for finding in findings] == [True] * count


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("place", ["/scratch/me/Libri2Mix/", "C:\\me\\Libri2Mix\\", "../../data/"])
def test_paths_of_another_machine_are_found_and_noted(place, suffix, mix):
    corpus = Libri2Mix(data_dir=mix)
    before = {split: corpus.utterances(split) for split in corpus.splits}
    slash = "\\" if "\\" in place else "/"
    for split in corpus.splits:
        lines = [f"{r} {place}{split}{slash}wav{slash}{r}.wav\n" for r in ("rec1", "rec2")]
        (mix / split / "wav.scp").write_text("".join(lines))
        for path in sorted((mix / split / "wav").iterdir()):
            path.rename(path.with_suffix(suffix))
    for split in corpus.splits:
        found = corpus.utterances(split)
        assert [(u.id, u.labels) for u in found] == [(u.id, u.labels) for u in before[split]]
        assert [u.path for u in found] == [u.path.with_suffix(suffix) for u in before[split]]
    assert len(corpus.notes()) == 3 and all("2 of 2" in note for note in corpus.notes())


def test_utt2spk_is_made_of_spk2utt(mix):
    corpus = Libri2Mix(data_dir=mix)
    before = corpus.utterances("dev")
    folder = mix / "dev"
    (folder / "utt2spk").unlink()
    (problem,) = corpus.problems()
    assert "utt2spk" in problem
    (folder / "spk2utt").write_text("al a_rec1_b\nquin q_rec2\nzoe z_rec1_a z_rec1_c\n")
    assert corpus.problems() == []
    assert corpus.utterances("dev") == before and corpus.findings("dev") == []
    (folder / "spk2utt").write_text("al a_rec1_b\nzoe z_rec1_a z_rec1_c\n")
    with user_error("corpus-incomplete", r"/segments, line 4$", fix="spk2utt"):
        corpus.utterances("dev")


@pytest.mark.parametrize("change", [("\n", "\r\n"), (" ", "\t"), ("\n", " \n\n")])
def test_other_blanks_and_line_ends_give_the_same_utterances(change, mix):
    corpus = Libri2Mix(data_dir=mix)
    before = [corpus.utterances(split) for split in corpus.splits]
    for path in mix.glob("*/*"):
        if path.is_file():
            path.write_bytes(path.read_text().replace(*change).encode())
    found = [corpus.utterances(split) for split in corpus.splits]
    assert [[(u.id, u.path, u.labels) for u in us] for us in found] == [
        [(u.id, u.path, u.labels) for u in us] for us in before
    ]
    assert all_findings(mix) == []
