"""Paths that the user gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.fileio.paths import expand_home, move_aside, require_absent
from tests.mistakes import user_error


def test_the_home_folder_is_expanded_in_paths_texts_and_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home([Path("~/a"), "~/b", 3]) == [Path("/home/me/a"), "/home/me/b", 3]


def test_an_existing_output_and_a_broken_link_are_refused(tmp_path: Path) -> None:
    require_absent(tmp_path / "new", "-o new")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, link):
        with user_error("file-exists", "-o"):
            require_absent(path, f"-o {path}")


def test_files_moved_aside_never_replace_each_other(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        (tmp_path / "file").write_text(text)
        move_aside(tmp_path / "file", tmp_path / "file.damaged")
    names = ["file.damaged", "file.damaged-2", "file.damaged-3"]
    assert [(tmp_path / name).read_text() for name in names] == ["first", "second", "third"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
