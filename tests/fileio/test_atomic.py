"""Atomic writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.fileio.atomic import atomic_path, replace_text


@pytest.mark.parametrize("sync", [False, True])
def test_the_new_file_appears_after_the_block(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "table.jsonl.gz"
    path.write_text("old")
    with atomic_path(path, sync=sync) as partial:
        assert partial.suffixes == path.suffixes
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text("new")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
