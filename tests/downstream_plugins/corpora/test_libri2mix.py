from __future__ import annotations

import numpy as np
import pytest
import torch

from downstream_plugins.sd.corpus import Libri2Mix, frame_labels
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
    ("frames", "chunks"),
    [
        (2000, [(0, 2000)]),
        (4321, [(0, 2000), (2000, 4000), (4000, 4321)]),
        (2002, [(0, 2000)]),  # two frames are 320 samples: nothing for the encoder
        (2003, [(0, 2000), (2000, 2003)]),
        (1234, [(0, 1234)]),
    ],
)
def test_chunks_are_2000_frames(tmp_path, frames, chunks):
    assert list(Libri2Mix(data_dir=tmp_path).chunks(frames)) == chunks


def test_chunks_cover_the_recording(mix, tmp_path):
    cuts = list(load_cuts(Libri2Mix(data_dir=mix, chunk_size=100), "train", tmp_path / "c"))
    whole = load_waveform(next(iter(load_cuts(Libri2Mix(data_dir=mix), "dev", tmp_path / "c"))))
    chunks = [load_waveform(cut) for cut in cuts if cut.custom["labels"]["recording"] == "rec1"]
    assert whole.shape == (321 * 160,)
    assert torch.equal(torch.cat(chunks), whole)


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
    assert "segments does not exist" in problem and "datarc.data_dir" in problem
