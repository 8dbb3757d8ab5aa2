"""Atomic writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from s3prl_mtl.fileio.atomic import atomic_path, remove_partials, replace_text, write_reason


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


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    names = ("states-1.ckpt", ".partial-7-states-2.ckpt", ".partial-7-other.ckpt")
    for name in names:
        (tmp_path / name).touch()
    remove_partials(tmp_path, "states-*.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[2]}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, os.strerror(errno.ENOSPC)),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), "disk"),
        (RuntimeError("unexpected pos 704 vs 598"), "disk"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("PytorchStreamWriter"), None),
    ],
    ids=["system", "torch", "torch at the end", "no write", "other type"],
)
def test_only_failed_writes_have_a_reason(error: Exception, reason: str | None) -> None:
    found = write_reason(error)
    assert found is None if reason is None else found is not None and reason in found


def test_the_reason_of_the_system_is_found_behind_an_error_of_torch() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file")
    error.__context__ = FULL
    assert write_reason(error) == os.strerror(errno.ENOSPC)
