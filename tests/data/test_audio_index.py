"""Audio files found by name, whatever their format and folder are."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.data import AudioIndex, MovedFiles, audio_stem


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a/1.wav", "a/1"), ("1.FLAC", "1"), ("a/1.m4a", "a/1"), ("x.y", "x.y"), ("a.b.wav", "a.b")],
)
def test_only_suffixes_of_audio_are_removed(name, stem):
    assert audio_stem(name) == stem


@pytest.mark.parametrize(
    ("files", "listed", "found"),
    [
        (["a/1.wav"], "a/1.wav", "a/1.wav"),
        (["a/1.flac"], "a/1.wav", "a/1.flac"),
        (["a/1.opus"], "a/1.wav", "a/1.opus"),
        (["a/1.WAV"], "a/1.wav", "a/1.WAV"),
        (["a/1.mp3", "a/1.flac"], "a/1.wav", "a/1.flac"),
        (["a/1.mp3", "a/1.flac"], "a/1.mp3", "a/1.mp3"),
        (["a/1.flac", "a/1.wav"], "a/1", "a/1.wav"),
        (["a/1.m4a"], "a/1.wav", "a/1.m4a"),
        (["a/1.m4a", "a/1.ogg"], "a/1.m4a", "a/1.m4a"),
        (["a/1.m4a", "a/1.ogg"], "a/1.wav", "a/1.ogg"),
        (["b/1.wav"], "a/1.wav", None),
        (["a/1.txt"], "a/1.wav", None),
        (["a/._1.wav"], "a/1.wav", None),
    ],
)
def test_the_listed_file_is_taken_otherwise_a_lossless_one(files, listed, found, tmp_path):
    index = AudioIndex(touch(tmp_path, *files))
    assert index.find(listed) == (None if found is None else tmp_path / found)


def test_names_without_folders_are_found_in_any_folder(tmp_path):
    index = AudioIndex(touch(tmp_path, "a/b/1.flac", "2.wav"), by_name=True)
    assert index.find("1") == tmp_path / "a/b/1.flac"
    assert index.find("c/2.flac") == tmp_path / "2.wav"


def test_doubles_are_the_files_that_are_not_used(tmp_path):
    files = ["1.wav", "1.mp3", "1.flac", "2.wav", "3.wav", "3.m4a"]
    index = AudioIndex(touch(tmp_path, *files))
    assert index.doubles == [("1.wav", "1.flac"), ("1.wav", "1.mp3")]
    assert index.files() == ["1.wav", "2.wav", "3.wav"]
    assert list(index) == ["1", "2", "3"] and len(index) == 3


@pytest.mark.parametrize(
    ("files", "path", "found"),
    [
        (["dev/wav/1.wav", "test/wav/1.wav"], "/home/x/mix/test/wav/1.wav", "test/wav/1.wav"),
        (["deep/er/dev/1.wav"], "/data/dev/1.wav", "deep/er/dev/1.wav"),
        (["dev/1.flac"], "/data/dev/1.wav", "dev/1.flac"),
        (["dev/1.flac", "dev/1.wav"], "/data/dev/1.wav", "dev/1.wav"),
        (["dev/1.wav"], "C:\\mix\\dev\\1.wav", "dev/1.wav"),
        (["a/1.wav"], "/data/b/1.wav", "a/1.wav"),
        (["a/1.wav", "b/1.wav"], "/data/c/1.wav", None),
        (["a/2.wav"], "/data/a/1.wav", None),
    ],
)
def test_a_path_of_another_machine_is_found_by_its_last_components(files, path, found, tmp_path):
    moved = MovedFiles(touch(tmp_path, *files))
    assert moved.find(path) == (None if found is None else tmp_path / found)
