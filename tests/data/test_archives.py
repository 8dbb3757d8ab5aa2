"""Corpora with their audio in archives are the same corpora."""

from __future__ import annotations

import os
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data import UnreadableAudio, list_files, load_waveform, read_audio, walk_files
from s3prl_mtl.data.archives import Archives, file_size
from s3prl_mtl.data.shards import write_archives
from s3prl_mtl.registry.plugins import discover_tasks
from tests.mistakes import user_error

TASKS = ["asr", "er", "ic", "ks", "pr", "sd", "sf", "sid", "sv"]


@pytest.fixture(scope="module")
def sharded(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "corpora"
    assert main(["shard", str(tiny_corpus), str(folder), "--shard_size", "30"]) == 0
    return folder


def write(path: Path, samples: int = 1600, rate: int = 16000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, (samples, channels))
    soundfile.write(path, noise, rate)


def test_no_audio_is_left_beside_the_archives(tiny_corpus: Path, sharded: Path) -> None:
    assert list(walk_files(sharded)) == list(walk_files(tiny_corpus))
    left = [name for _, _, names in os.walk(sharded) for name in names]
    assert not [name for name in left if name.endswith((".wav", ".flac"))]
    assert len([name for name in left if name.endswith(".tar")]) > 2


def test_lhotse_reads_the_archives_as_a_shar(tiny_corpus: Path, sharded: Path) -> None:
    cuts = list(CutSet.from_shar(in_dir=sharded / ".shards"))
    names = [name for name in walk_files(tiny_corpus) if name.endswith((".wav", ".flac"))]
    assert sorted(cut.id for cut in cuts) == sorted(os.path.splitext(name)[0] for name in names)
    for cut in cuts[::40]:
        (file,) = tiny_corpus.glob(f"{cut.id}.*[va]*")
        expected, _ = soundfile.read(file, dtype="float32", always_2d=True)
        # As lhotse's backends decode it; some of them need torchaudio's libraries.
        found, _ = soundfile.read(BytesIO(cut.recording.sources[0].source), dtype="float32")
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def expert_of(task: str, data: Path, cache: Path, folder: Path) -> Any:
    flags = {"upstream": {"name": "hubert_tiny"}, "downstream": [task], "data": str(data)}
    block = resolve(build_config([], flags, None)).tasks[task]
    return discover_tasks()[task].load()(80, 320, block.downstream_expert, folder, cache_dir=cache)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_reads_the_same(
    task: str, tiny_corpus: Path, sharded: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    tables, reports, waveforms = [], [], []
    for data, cache in ((tiny_corpus, manifest_cache), (sharded, tmp_path / "cache")):
        expert = expert_of(task, data, cache, tmp_path)
        splits = {split: expert.cuts(split) for split in expert.corpus.splits}
        columns = ("id", "start", "duration", "digest", "labels")
        tables.append(
            [expert.labels, {s: cuts.columns(*columns).to_pylist() for s, cuts in splits.items()}]
        )
        reports.append([finding.what for finding in expert.report(splits).findings])
        waveforms.append(load_waveform(splits[expert.train_split][0]))
    assert tables[0] == tables[1]
    assert reports[0] == reports[1]
    assert torch.equal(*waveforms)


def test_training_is_the_same(
    tiny_corpus: Path, sharded: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    weights = []
    for data in (tiny_corpus, sharded):
        run = tmp_path / data.name
        words = ["-u", "hubert_tiny", "-d", "ks,sd", "--data", str(data), "-p", str(run)]
        settings = f"cache_dir={manifest_cache},,runner.test_last=false,,device=cpu"
        assert main(["train", *words, "--steps", "2", "-o", settings]) == 0
        weights.append(checkpoints.load(run / "states-2.ckpt").upstream)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_files_of_all_kinds_keep_their_places(tmp_path: Path) -> None:
    source = tmp_path / "data"
    for name in ("a/1.wav", "a-b/2.wav", "a/deep/é 3.flac", "a.wav", "a/1.flac"):
        write(source / name)
    write(source / "stereo.wav", channels=2)
    (source / "a" / "list.txt").write_text("1\n")
    (source / "a" / "broken.wav").write_bytes(b"RIFF no audio")
    (source / "a" / "._1.wav").write_bytes(b"of macOS")
    (source / "empty").mkdir()
    (source / "link").symlink_to(source / "a" / "deep")
    (source / "a" / "loop").symlink_to(source)
    assert write_archives(source, tmp_path / "out", shard_size=2) == (7, 4)
    out = tmp_path / "out"
    # Each place of a folder with two names has a copy.
    expected = sorted({*walk_files(source), "link/é 3.flac"}, key=lambda name: name.split("/"))
    assert list(walk_files(out)) == expected
    assert list_files(out / "a") == ["1.flac", "1.wav", "broken.wav", "list.txt"]
    assert list_files(out) == ["a.wav", "stereo.wav"]
    assert (out / "empty").is_dir()
    assert (out / "a" / "broken.wav").is_file()
    for name in expected:
        assert file_size(out / name) == file_size(source / name)
        place = Archives(out).find(name)
        if place is not None:
            archive, offset, size = place
            content = Path(archive).read_bytes()[offset : offset + size]
            assert content == (source / name).read_bytes()
    assert file_size(out / "a" / "2.wav") is None


def test_the_archives_may_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "data" / "1.wav", 800)
    bucket = tmp_path / "bucket"
    write_archives(tmp_path / "data", tmp_path / "out", url=f"file://{bucket}/")
    bucket.mkdir()
    (archive,) = (tmp_path / "out" / ".shards").glob("*.tar")
    shutil.move(archive, bucket)
    assert len(read_audio(tmp_path / "out" / "1.wav")) == 800


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "1.wav", 800)
    write_archives(tmp_path / "data", tmp_path / "out")
    (archive,) = (tmp_path / "out" / ".shards").glob("*.tar")
    archive.unlink()
    with pytest.raises(UnreadableAudio, match=re.escape(archive.name)):
        read_audio(tmp_path / "out" / "1.wav")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "1.wav")
    write_archives(tmp_path / "data", tmp_path / "out")
    index = tmp_path / "out" / ".shards.arrow"
    index.write_bytes(index.read_bytes()[:40])
    with user_error("file-malformed", where=re.escape(str(index))):
        list(walk_files(tmp_path / "out"))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "1.wav")
    with user_error("file-missing", where="nowhere"):
        write_archives(tmp_path / "nowhere", tmp_path / "out")
    with user_error("file-exists", where="data"):
        write_archives(data, data)
    with user_error("invalid-value", where="inside"):
        write_archives(data, data / "inside")
    with user_error("invalid-value", where="--shard_size"):
        write_archives(data, tmp_path / "out", shard_size=0)
    assert not (tmp_path / "out").exists()
    assert list(walk_files(data)) == ["1.wav"]


def test_archives_of_a_run_that_was_interrupted_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "1.wav")

    def stop(files: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archives(tmp_path / "data", tmp_path / "out", progress=stop)
    assert list(walk_files(tmp_path / "out")) == []
