"""Manifests: content, invalidation, and skipped files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data import load_cuts, load_waveform, manifest_cache
from s3prl_mtl.data.scanning import UNDECODABLE
from tests.mistakes import user_error


@pytest.fixture
def scans(monkeypatch):
    """Counts how often a split is scanned."""
    calls = []
    real = manifest_cache.scan

    def counted(utterances, *rest):
        calls.append(len(utterances))
        return real(utterances, *rest)

    monkeypatch.setattr(manifest_cache, "scan", counted)
    return calls


def classes(cuts):
    return {cut.id: cut.custom["labels"]["class"] for cut in cuts}


def test_cuts_carry_ids_labels_and_durations(listed_corpus, tmp_path):
    cuts = list(load_cuts(listed_corpus(5), "train", tmp_path / "cache"))
    assert [cut.id for cut in cuts] == [f"u{i:03d}.wav" for i in range(5)]
    assert [cut.custom["labels"]["class"] for cut in cuts] == ["c0", "c1", "c2", "c0", "c1"]
    assert [cut.duration for cut in cuts] == pytest.approx([0.1, 0.11, 0.12, 0.13, 0.14])
    assert load_waveform(cuts[2]).shape == (1920,)


def test_any_sample_rate_and_channel_count_is_read(listed_corpus, tmp_path, write_audio):
    corpus = listed_corpus(3)
    write_audio(corpus.root / "u000.wav", 0.5, rate=8_000)
    write_audio(corpus.root / "u001.wav", 0.5, rate=44_100, channels=2)
    loaded = [load_waveform(cut) for cut in load_cuts(corpus, "train", tmp_path / "cache")]
    assert [w.shape for w in loaded] == [(8000,), (8000,), (1920,)]


def test_a_second_call_reads_the_cache(listed_corpus, tmp_path, scans):
    corpus = listed_corpus(4)
    first = load_cuts(corpus, "train", tmp_path / "cache")
    second = load_cuts(type(corpus)(corpus.root), "train", tmp_path / "cache")
    assert scans == [4]
    assert [cut.to_dict() for cut in first] == [cut.to_dict() for cut in second]


def test_splits_and_folders_have_manifests_of_their_own(listed_corpus, tmp_path, scans):
    corpus = listed_corpus(4)
    load_cuts(corpus, "train", tmp_path / "cache")
    load_cuts(corpus, "test", tmp_path / "cache")
    other = tmp_path / "other"
    corpus.root.rename(other)
    cuts = load_cuts(type(corpus)(other), "train", tmp_path / "cache")
    assert scans == [4, 4, 4]
    assert all(str(other) in cut.recording.sources[0].source for cut in cuts)


def test_changed_labels_are_noticed(listed_corpus, tmp_path, scans):
    corpus = listed_corpus(3)
    load_cuts(corpus, "train", tmp_path / "cache")
    status = os.stat(corpus.root / "labels.txt")
    (corpus.root / "labels.txt").write_text("u000.wav c9\nu001.wav c1\nu002.wav c2\n")
    # Even one that hides behind the same size and time.
    os.utime(corpus.root / "labels.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert classes(load_cuts(corpus, "train", tmp_path / "cache"))["u000.wav"] == "c9"
    assert scans == [3, 3]


def test_changed_added_and_removed_audio_is_noticed(listed_corpus, tmp_path, scans, write_audio):
    corpus = listed_corpus(3)
    cache = tmp_path / "cache"
    load_cuts(corpus, "train", cache)
    write_audio(corpus.root / "u001.wav", seconds=2.0)
    assert list(load_cuts(corpus, "train", cache))[1].duration == 2.0
    write_audio(corpus.root / "u003.wav", seconds=1.0)
    with (corpus.root / "labels.txt").open("a") as file:
        file.write("u003.wav c0\n")
    assert len(load_cuts(corpus, "train", cache)) == 4
    (corpus.root / "u003.wav").unlink()
    with user_error("corpus-incomplete", where=r"u003\.wav: missing"):
        load_cuts(corpus, "train", cache)
    assert scans == [3, 3, 4, 4]


def test_source_json_names_the_folder(listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    load_cuts(corpus, "train", tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "manifests").iterdir()
    assert folder.name.startswith("listed-files-")
    (manifest,) = folder.glob("train-*.arrow")
    source = json.loads((folder / "source.json").read_text())
    assert source["splits"]["train"]["manifest"] == manifest.name
    assert source["settings"] == {"root": str(corpus.root)}
    assert source["splits"]["train"]["utterances"] == 3


@pytest.mark.parametrize("damage", ["train-*.arrow", "source.json"])
def test_a_damaged_cache_is_rebuilt(listed_corpus, tmp_path, damage):
    corpus = listed_corpus(3)
    load_cuts(corpus, "train", tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "manifests").glob(f"*/{damage}")
    path.write_bytes(path.read_bytes()[:40])
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 3
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 3


def spoil(path, fault):
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("RIFF? No, a web page that says: not found.\n" * 50)
    elif fault == "missing":
        path.unlink()
    elif fault == "0.01 s":
        soundfile.write(path, np.zeros(160), 16_000)
    elif fault == "no samples":
        soundfile.write(path, np.zeros(0), 16_000)
    elif fault == "399 samples":
        soundfile.write(path, np.zeros(399), 16_000)
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:1500])


FAULTS = ["empty", "text", "missing", "0.01 s", "no samples", "399 samples", "truncated"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_skipped_counted_and_logged(listed_corpus, tmp_path, caplog, fault):
    corpus = listed_corpus(100)
    spoil(corpus.root / "u042.wav", fault)
    with caplog.at_level(logging.WARNING):
        cuts = load_cuts(corpus, "train", tmp_path / "cache")
    assert len(cuts) == 99 and "u042.wav" not in classes(cuts)
    assert caplog.text.count(str(corpus.root / "u042.wav")) == 1
    caplog.clear()
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 99
    (record,) = caplog.records
    (source,) = (tmp_path / "cache").glob("manifests/*/source.json")
    assert record.args == (corpus.task, "train", 1, 100, source)


def test_a_truncated_flac_file_is_skipped(listed_corpus, tmp_path, write_audio, caplog):
    corpus = listed_corpus(100)
    flac = write_audio(corpus.root / "long.flac", seconds=3.0)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    labels = corpus.root / "labels.txt"
    labels.write_text(labels.read_text().replace("u007.wav", "long.flac"))
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 99
    assert str(flac) in caplog.text


def test_400_samples_are_enough(listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    soundfile.write(corpus.root / "u000.wav", np.linspace(-0.5, 0.5, 400), 16_000)
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 3


def test_a_wave_file_of_unknown_length_is_read(listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    path = corpus.root / "u000.wav"
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"  # as programs that write to a pipe leave it
    path.write_bytes(content)
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 3


def test_more_than_one_percent_of_bad_files_is_an_error_that_lists_them(listed_corpus, tmp_path):
    corpus = listed_corpus(100)
    spoil(corpus.root / "u042.wav", "empty")
    spoil(corpus.root / "u043.wav", "text")
    with user_error("corpus-incomplete", where="^2 of 100 ") as caught:
        load_cuts(corpus, "train", tmp_path / "cache")
    assert f"{corpus.root / 'u042.wav'}: empty" in caught.value.where
    assert f"{corpus.root / 'u043.wav'}: unreadable" in caught.value.where


def test_an_utterance_listed_twice_is_an_error(listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    with (corpus.root / "labels.txt").open("a") as file:
        file.write("u001.wav c0\n")
    with user_error("corpus-malformed", where=r"u001\.wav"):
        load_cuts(corpus, "train", tmp_path / "cache")


def test_a_misspelt_split_is_an_error_with_the_nearest_name(listed_corpus, tmp_path):
    with user_error("unknown-name", where="'trian'", fix="'train'"):
        load_cuts(listed_corpus(3), "trian", tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(listed_corpus, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with user_error("file-unwritable", where=str(tmp_path / "cache"), fix="--cache_dir"):
        load_cuts(listed_corpus(3), "train", tmp_path / "cache")


def test_utterances_rejected_by_the_content_check_are_not_faulty(listed_corpus, tmp_path):
    corpus = listed_corpus(10)
    corpus.content_check = lambda split: lambda waveform: waveform.shape[0] > 0.15 * 16_000
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    assert [cut.id for cut in cuts] == [f"u{i:03d}.wav" for i in range(6, 10)]


@pytest.mark.slow
def test_two_processes_may_build_the_same_cache_at_once(listed_corpus, tmp_path):
    corpus = listed_corpus(40)
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from tests.data.conftest import ListedCorpus
        from s3prl_mtl.data import load_cuts
        for _ in range(3):
            cuts = load_cuts(ListedCorpus(Path(sys.argv[2])), "train", sys.argv[3])
            assert [cut.id for cut in cuts] == [f"u{i:03d}.wav" for i in range(40)]
        """
    )
    here = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", program, here, str(corpus.root), str(tmp_path / "cache")]
    running = [subprocess.Popen(arguments, cwd=os.getcwd()) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    (folder,) = (tmp_path / "cache" / "manifests").iterdir()
    left = {path.suffix for path in folder.iterdir() if path.name != ".lock"}
    assert left == {".arrow", ".json"}


@pytest.mark.parametrize(
    ("there", "reason", "remedy"),
    [
        ("u000.flac", r"u000\.wav: missing\b.*\bu000\.flac", "--data"),
        ("u000.m4a", rf"u000\.wav: missing\b.*\bu000\.m4a\b.* \.m4a {UNDECODABLE}", "ffmpeg"),
        ("u000.wav.part", r"u000\.wav: missing\b.*\bu000\.wav\.part", "--data"),
        ("U000.WAV", r"u000\.wav: missing\b.*\bU000\.WAV", "--data"),
        ("u0001.wav", r"u000\.wav: missing\b(?!.*u0)", "1 missing"),
        (None, r"u000\.wav: missing\b(?!.*u0)", "1 missing"),
    ],
)
def test_what_is_there_instead_of_a_missing_file_is_named(
    there, reason, remedy, listed_corpus, tmp_path
):
    corpus = listed_corpus(3)
    if there is None:
        (corpus.root / "u000.wav").unlink()
    else:
        (corpus.root / "u000.wav").rename(corpus.root / there)
    with user_error("corpus-incomplete", where=reason, fix=remedy):
        load_cuts(corpus, "train", tmp_path / "cache")


@pytest.mark.parametrize("path", ["elsewhere/a/b/1.wav", "elsewhere/1.wav", "elsewhere/x/1.flac"])
def test_the_first_folder_that_does_not_exist_is_named(path, listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    with (corpus.root / "labels.txt").open("a") as labels:
        labels.write(f"{path} c0\n")
    with user_error("corpus-incomplete", where=f" {corpus.root}/elsewhere$"):
        load_cuts(corpus, "train", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".m4a", ".aac", ".M4A"])
def test_formats_that_libsndfile_lacks_are_named(suffix, listed_corpus, tmp_path):
    corpus = listed_corpus(3)
    (corpus.root / "u000.wav").rename(corpus.root / f"u000{suffix}")
    labels = corpus.root / "labels.txt"
    labels.write_text(labels.read_text().replace("u000.wav", f"u000{suffix}"))
    reason = rf"{suffix.lower()} files cannot be read"
    with user_error("corpus-incomplete", where=reason, fix="ffmpeg"):
        load_cuts(corpus, "train", tmp_path / "cache")
