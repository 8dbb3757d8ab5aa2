"""Checkpoint files: atomic writes, refused and damaged files, selection of the newest."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint, TaskCheckpoint
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.safe_torch import ZIP_MAGIC, DamagedFile
from tests.comparison import assert_same
from tests.mistakes import user_error


def content(step: int, tasks: dict[str, TaskCheckpoint] | None = None) -> RunCheckpoint:
    weights = {"w": torch.full((1000,), float(step))}
    return RunCheckpoint(
        step=step,
        skips={},
        config={},
        upstream=weights,
        upstream_info=None,
        featurizer={},
        tasks=tasks or {},
    )


def test_a_saved_checkpoint_is_loaded_unchanged(tmp_path: Path):
    path = tmp_path / "states-3.ckpt"
    checkpoints.save(content(3), path)
    loaded = checkpoints.load(path)
    assert loaded.step == 3
    assert torch.equal(loaded.upstream["w"], torch.full((1000,), 3.0))
    assert os.listdir(tmp_path) == ["states-3.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    # A limit on the size of files makes the write fail as a full disk does, part of the way in.
    script = f"""
import resource, signal, torch
from pathlib import Path
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    new = RunCheckpoint(
        step=2, skips={{}}, config={{}}, upstream={{"w": torch.ones(1_000_000)}},
        upstream_info=None, featurizer={{}}, tasks={{}},
    )
    checkpoints.save(new, Path({str(path)!r}))
except UserError as error:
    print(error.code, error.where)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == f"file-unwritable {path}\n", result.stderr
    assert checkpoints.load(path).step == 1
    assert os.listdir(tmp_path) == ["states-1.ckpt"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path):
    obstacle = tmp_path / "run"
    obstacle.write_text("a file where the folder of the run should be")
    with user_error("file-unwritable", where=r"states-1\.ckpt"):
        checkpoints.save(content(1), obstacle / "states-1.ckpt")


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 10, 100, 1000, -100, -1])
def test_a_truncated_file_is_damaged(tmp_path: Path, kept: int):
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    path.write_bytes(path.read_bytes()[:kept])
    with damaged_file(r"states-1\.ckpt"):
        checkpoints.load(path)


def test_a_file_of_zeros_only_is_damaged(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    path.write_bytes(bytes(5000))  # what a power cut may leave
    with damaged_file(r"states-1\.ckpt"):
        checkpoints.load(path)


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_foreign_class_is_refused_by_name_and_not_executed(tmp_path: Path):
    witness = tmp_path / "executed"
    path = tmp_path / "states-1.ckpt"
    torch.save({"Format": 2, "Step": 1, "Bad": Payload(witness)}, path)
    with user_error("torch-file-refused", where=r"states-1\.ckpt") as caught:
        checkpoints.load(path)
    assert "mkdir" in caught.value.what
    assert not witness.exists()


def test_a_plain_pickle_is_refused_and_not_executed(tmp_path: Path):
    witness = tmp_path / "executed"
    path = tmp_path / "states-1.ckpt"
    path.write_bytes(pickle.dumps({"Format": 2, "Bad": Payload(witness)}))
    with user_error("checkpoint-format", where=r"states-1\.ckpt"):
        checkpoints.load(path)
    assert not witness.exists()


def test_another_programs_file_is_refused(tmp_path: Path):
    path = tmp_path / "other.ckpt"
    torch.save({"model": {}}, path)
    with user_error("checkpoint-format", where=r"other\.ckpt"):
        checkpoints.load(path)


def test_an_archive_that_torch_did_not_write_is_not_a_damaged_checkpoint(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "not a checkpoint")
    with user_error("checkpoint-format", where=r"states-1\.ckpt"):
        checkpoints.load(path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path):
    # Some bytes hold nothing that is read: padding between the parts, the time of writing.
    path = tmp_path / "states-1.ckpt"
    weights = {"w": torch.arange(5.0)}
    saved = replace(
        content(1, {"ks": TaskCheckpoint({}, {"classes": ["yes"]}, {})}), upstream=weights
    )
    checkpoints.save(saved, path)
    whole = path.read_bytes()
    noticed = set()
    for position in range(0, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = checkpoints.load(path)
        except DamagedFile:
            noticed.add(position)
            continue
        assert_same(loaded, saved, str(position))
    first = whole.index(weights["w"].numpy().tobytes())
    assert noticed >= {0, 1, 2, 3, *range(first, first + 20), len(whole) - 22}


def test_a_part_marked_as_a_folder_is_damage(tmp_path: Path):
    # Then torch takes for the content of the part whatever is in memory.
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    damaged = bytearray(path.read_bytes())
    attributes = damaged.index(b"PK\x01\x02") + 38
    damaged[attributes] ^= 0x10
    path.write_bytes(damaged)
    with damaged_file(r"states-1\.ckpt"):
        checkpoints.load(path)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    whole = content(1).to_dict()
    del whole["Upstream"]
    torch.save(whole, path)
    with user_error("checkpoint-incomplete", where=rf"^Upstream of {path}$"):
        checkpoints.load(path)


def test_only_the_newest_are_kept_by_number(tmp_path: Path):
    for step in (5, 40, 1000, 200):
        checkpoints.save(content(step), tmp_path / f"states-{step}.ckpt")
    checkpoints.keep_newest(tmp_path, 2)
    assert [p.name for p in checkpoints.states_files(tmp_path)] == [
        "states-200.ckpt",
        "states-1000.ckpt",
    ]
    assert checkpoints.locate(tmp_path).name == "states-1000.ckpt"


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with user_error("checkpoint-missing", where=f"^-e {path}$"):
            checkpoints.locate(path)


def test_heads_of_s3prl_with_their_arguments_can_be_read(tmp_path: Path):
    path = tmp_path / "hubert_ks.ckpt"
    torch.save({"Downstream": {"w": torch.ones(2)}, "Args": argparse.Namespace(seed=1)}, path)
    assert torch.equal(checkpoints.read_tensors(path)["Downstream"]["w"], torch.ones(2))


def make_run(folder: Path, *steps: int) -> Path:
    for step in steps:
        checkpoints.save(content(step), folder / f"states-{step}.ckpt")
    return folder


@contextmanager
def damaged_file(where: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    with user_error("torch-file-refused", where=where) as caught:
        yield caught
    assert isinstance(caught.value, DamagedFile)


def skipped(caplog: pytest.LogCaptureFixture) -> list[tuple[Path, str, str, str]]:
    """Of each warning: the damaged file, its new name, the reason, and the file in its place."""
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    return [record.args for record in caplog.records]


def flip(path: Path, position: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 0xFF
    path.write_bytes(damaged)


def weights_position(path: Path) -> int:
    number = float(path.stem.removeprefix("states-"))
    return path.read_bytes().index(torch.full((8,), number).numpy().tobytes())


def truncate(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])


DAMAGES = {
    "empty": lambda path: truncate(path, 0),
    "two bytes left": lambda path: truncate(path, 2),
    "half": lambda path: truncate(path, path.stat().st_size // 2),
    "without the last byte": lambda path: truncate(path, -1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "first byte flipped": lambda path: flip(path, 0),
    "weights flipped": lambda path: flip(path, weights_position(path)),
    "index flipped": lambda path: flip(path, path.read_bytes().index(b"PK\x01\x02")),
    "end flipped": lambda path: flip(path, -22),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, 9, 20, 40)
    DAMAGES[damage](run / "states-40.ckpt")
    remains = (run / "states-40.ckpt").read_bytes()
    with caplog.at_level(logging.WARNING):
        loaded, path = checkpoints.load_newest(run)
    assert (loaded.step, path) == (20, run / "states-20.ckpt")
    assert torch.equal(loaded.upstream["w"], torch.full((1000,), 20.0))
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt.damaged", "states-9.ckpt"]
    assert (run / "states-40.ckpt.damaged").read_bytes() == remains
    with damaged_file() as caught:
        checkpoints.load(run / "states-40.ckpt.damaged")
    assert skipped(caplog) == [
        (run / "states-40.ckpt", "states-40.ckpt.damaged", caught.value.what, "states-20.ckpt")
    ]


def test_the_newest_checkpoint_is_loaded_without_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, 9, 20, 40)
    loaded, path = checkpoints.load_newest(run)
    assert (loaded.step, path.name) == (40, "states-40.ckpt")
    assert len(os.listdir(run)) == 3 and not caplog.records


def test_several_damaged_checkpoints_in_a_row_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, 9, 20, 40)
    truncate(run / "states-40.ckpt", 500)
    flip(run / "states-20.ckpt", 0)
    assert checkpoints.load_newest(run)[1].name == "states-9.ckpt"
    assert [(path.name, used) for path, _, _, used in skipped(caplog)] == [
        ("states-40.ckpt", "states-9.ckpt"),
        ("states-20.ckpt", "states-9.ckpt"),
    ]
    assert sorted(os.listdir(run)) == [
        "states-20.ckpt.damaged",
        "states-40.ckpt.damaged",
        "states-9.ckpt",
    ]


def test_files_set_aside_are_neither_overwritten_nor_counted(tmp_path: Path):
    run = make_run(tmp_path, 20, 40)
    for remains in (b"first", b"second", b"third"):
        (run / "states-40.ckpt").write_bytes(ZIP_MAGIC + remains)
        assert checkpoints.load_newest(run)[1].name == "states-20.ckpt"
    make_run(run, 30)
    checkpoints.keep_newest(run, 2)
    aside = [f"states-40.ckpt.damaged{number}" for number in ("", "-2", "-3")]
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-30.ckpt", *aside]
    held = [(run / name).read_bytes().removeprefix(ZIP_MAGIC) for name in aside]
    assert held == [b"first", b"second", b"third"]


def test_reading_alone_does_not_rename_damaged_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = make_run(tmp_path, 20, 40)
    truncate(run / "states-40.ckpt", 500)
    assert checkpoints.load_newest(run, set_aside=False)[0].step == 20
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]
    ((path, kept_as, _, used),) = skipped(caplog)
    assert (path.name, kept_as, used) == ("states-40.ckpt", "states-40.ckpt", "states-20.ckpt")


def test_if_all_are_damaged_each_is_listed_and_none_is_renamed(tmp_path: Path):
    run = make_run(tmp_path, 20, 40)
    truncate(run / "states-40.ckpt", 0)
    flip(run / "states-20.ckpt", weights_position(run / "states-20.ckpt"))
    with damaged_file(f"^-i {run}$") as caught:
        checkpoints.load_newest(run, "-i")
    for step in (40, 20):
        with damaged_file() as single:
            checkpoints.load(run / f"states-{step}.ckpt")
        assert f"states-{step}.ckpt: {single.value.what}" in caught.value.what
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]


def test_damage_to_the_only_checkpoint_is_an_error(tmp_path: Path):
    run = make_run(tmp_path, 40)
    truncate(run / "states-40.ckpt", 500)
    with damaged_file(f"^-e {tmp_path}$"):
        checkpoints.load_newest(run)
    assert os.listdir(run) == ["states-40.ckpt"]


def test_a_given_file_is_not_replaced_by_another_one(tmp_path: Path):
    run = make_run(tmp_path, 20, 40)
    assert checkpoints.load_newest(run / "states-20.ckpt")[0].step == 20
    truncate(run / "states-40.ckpt", 500)
    with damaged_file(r"states-40\.ckpt"):
        checkpoints.load_newest(run / "states-40.ckpt")
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]


def test_a_missing_run_is_reported_with_its_flag(tmp_path: Path):
    with user_error("checkpoint-missing", where=f"^-i {tmp_path}$"):
        checkpoints.load_newest(tmp_path, "-i")
    with user_error("checkpoint-missing", where=f"^-e {tmp_path / 'nowhere'}$"):
        checkpoints.load_newest(tmp_path / "nowhere")


def write_text(path: Path) -> None:
    path.write_text("The checkpoint is on the other disk.\n" * 100)


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
        archive.writestr("archive/version", "3\n")


FOREIGN = {
    "text": ("checkpoint-format", write_text),
    "dictionary of another program": (
        "checkpoint-format",
        lambda path: torch.save({"model": {}}, path),
    ),
    "plain pickle": (
        "checkpoint-format",
        lambda path: path.write_bytes(pickle.dumps(list(range(1000)))),
    ),
    "archive with an incomplete pickle": ("file-unreadable", write_archive),
    "foreign class": (
        "torch-file-refused",
        lambda path: torch.save({"Bad": Payload(path / "executed")}, path),
    ),
    # Reading the memory of a process where nothing is mapped is an input/output error.
    "file that cannot be read now": (
        "file-unreadable",
        lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")),
    ),
}


@pytest.mark.parametrize("other", FOREIGN)
def test_only_damage_falls_back_to_an_earlier_checkpoint(tmp_path: Path, other: str):
    run = make_run(tmp_path, 20, 40)
    code, write = FOREIGN[other]
    write(run / "states-40.ckpt")
    with user_error(code, where=f"^{run / 'states-40.ckpt'}$") as caught:
        checkpoints.load_newest(run)
    assert not isinstance(caught.value, DamagedFile)
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]


@pytest.mark.parametrize("reader", ["zipfile._EndRecData", "zipfile.ZipExtFile.read", "torch.load"])
def test_a_disk_error_is_not_treated_as_damage(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = make_run(tmp_path, 20, 40)
    monkeypatch.setattr(reader, fail)
    with user_error("file-unreadable", where=r"states-40\.ckpt") as caught:
        checkpoints.load_newest(run)
    assert os.strerror(errno.EIO) in caught.value.what
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]


def test_lack_of_memory_is_not_treated_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reason = "unable to mmap 5000 bytes from file: Cannot allocate memory (12)"

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(reason)

    run = make_run(tmp_path, 20, 40)
    monkeypatch.setattr("torch.load", fail)
    with user_error("file-unreadable", where=r"states-40\.ckpt") as caught:
        checkpoints.load_newest(run)
    assert reason in caught.value.what
    assert sorted(os.listdir(run)) == ["states-20.ckpt", "states-40.ckpt"]


def test_a_damaged_file_that_cannot_be_renamed_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # It would be kept as the newest, in place of whole ones.
    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run = make_run(tmp_path, 20, 40)
    truncate(run / "states-40.ckpt", 500)
    monkeypatch.setattr(Path, "rename", fail)
    with user_error("file-unwritable", where=r"states-40\.ckpt") as caught:
        checkpoints.load_newest(run)
    assert os.strerror(errno.EROFS) in caught.value.what
