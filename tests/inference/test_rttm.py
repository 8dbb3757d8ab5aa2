"""RTTM files: no other file is overwritten, and names of recordings are unique."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.inference.rttm import marks_file, recording_names, write_rttm
from tests.mistakes import user_error


def names_of(*files: str) -> list[str]:
    names = recording_names([Path(file) for file in files])
    return [names[str(Path(file))] for file in files]


def test_names_are_stems_without_white_space():
    assert names_of("x/a.wav", "a b.wav", "tab\tand space .flac") == ["a", "a_b", "tab_and_space"]


def test_equal_names_are_made_unique():
    assert names_of("x/a.wav", "y/a.wav") == ["x/a.wav", "y/a.wav"]
    assert names_of("a b.wav", "a_b.wav") == ["a_b.wav", "a_b.wav_2"]
    assert names_of("a.wav", "a.flac", "a b.wav") == ["a.wav", "a.flac", "a_b"]
    many = names_of("a b.wav", "a_b.wav", "a\tb.wav", "a  b.wav", "x/a_b.wav_2.wav", " .wav")
    assert len(set(many)) == 6 and not any(set(name) & set(" \t") for name in many)
    assert all(many)


def test_a_file_that_is_given_twice_has_one_name():
    assert names_of("a.wav", "./a.wav", "x/../a.wav", "b.wav") == ["a", "a", "a", "b"]


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path):
    path = tmp_path / "who.rttm"
    path.write_text("before")
    with pytest.raises(KeyError), marks_file(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with marks_file(path) as file:
        answer = {"segments": [{"start": 0.5, "end": 1.25, "speaker": 1}]}
        write_rttm(file, "a", answer, "sd")
        assert path.read_text() == "before"
    assert path.read_text() == "SPEAKER a 1 0.500 0.750 <NA> <NA> speaker1 <NA> <NA>\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "who.rttm"
    link.symlink_to(tmp_path / "there" / "real.rttm")
    with marks_file(link) as file:
        file.write("x")
    assert link.is_symlink() and (tmp_path / "there" / "real.rttm").read_text() == "x"


@pytest.mark.parametrize("name", ["q1.wav", "notes", "folder", "folder.rttm"])
def test_another_file_is_not_overwritten(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    else:
        path.write_bytes(b"RIFF")
    with user_error("file-exists", where=f"^--rttm {path}$"), marks_file(path):
        raise AssertionError("it was opened")
    assert path.is_dir() or path.read_bytes() == b"RIFF"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"segments": None},
        {"segments": [{"start": 0.0, "end": 1.0}]},
        {"segments": [{"start": "x", "end": 1.0, "speaker": 0}]},
        {"segments": [{"start": 2.0, "end": 1.0, "speaker": 0}]},
    ],
)
def test_answers_without_segments_are_refused(tmp_path: Path, answer: dict):
    with (tmp_path / "x").open("w") as file, user_error("not-supported", where="task my_sd$"):
        write_rttm(file, "a", answer, "my_sd")
    assert (tmp_path / "x").read_text() == ""
