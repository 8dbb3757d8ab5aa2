"""Checkpoints survive what happens to files."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl.errors import UserError


def content(step: int) -> dict:
    others = dict.fromkeys(checkpoints.REQUIRED, 0)
    return {"Format": 1, **others, "Step": step, "Weights": torch.full((1000,), float(step))}


def test_what_is_saved_is_loaded(tmp_path: Path):
    path = tmp_path / "states-3.ckpt"
    checkpoints.save(content(3), path)
    loaded = checkpoints.load(path)
    assert loaded["Step"] == 3
    assert torch.equal(loaded["Weights"], torch.full((1000,), 3.0))
    assert os.listdir(tmp_path) == ["states-3.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    # A limit on the size of files makes the write fail as a full disk does, part of the way in.
    script = f"""
import resource, signal, torch
from pathlib import Path
from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    new = {{"Format": 1, "Step": 2, "Weights": torch.ones(1_000_000)}}
    checkpoints.save(new, Path({str(path)!r}))
except UserError as mistake:
    print("refused:", mistake)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "refused: The checkpoint could not be saved" in result.stdout, result.stderr
    assert checkpoints.load(path)["Step"] == 1
    assert os.listdir(tmp_path) == ["states-1.ckpt"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path):
    obstacle = tmp_path / "run"
    obstacle.write_text("a file where the folder of the run should be")
    with pytest.raises(UserError, match=r"could not be saved.*Earlier checkpoints are intact"):
        checkpoints.save(content(1), obstacle / "states-1.ckpt")


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 1000])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int):
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"states-1\.ckpt"):
        checkpoints.load(path)


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_foreign_class_is_refused_by_name_and_not_executed(tmp_path: Path):
    witness = tmp_path / "executed"
    path = tmp_path / "states-1.ckpt"
    torch.save({"Format": 1, "Step": 1, "Bad": Payload(witness)}, path)
    with pytest.raises(UserError, match="mkdir"):
        checkpoints.load(path)
    assert not witness.exists()


def test_a_plain_pickle_is_refused_and_not_executed(tmp_path: Path):
    witness = tmp_path / "executed"
    path = tmp_path / "states-1.ckpt"
    path.write_bytes(pickle.dumps({"Format": 1, "Bad": Payload(witness)}))
    with pytest.raises(UserError):
        checkpoints.load(path)
    assert not witness.exists()


def test_another_programs_file_is_refused(tmp_path: Path):
    path = tmp_path / "other.ckpt"
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of a run"):
        checkpoints.load(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    checkpoints.save(content(1), path)
    damaged = bytearray(path.read_bytes())
    position = damaged.index(torch.full((8,), 1.0).numpy().tobytes())
    damaged[position] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load(path)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path):
    path = tmp_path / "states-1.ckpt"
    whole = content(1)
    del whole["Upstream"]
    checkpoints.save(whole, path)
    with pytest.raises(UserError, match="lacks Upstream"):
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
    with pytest.raises(UserError, match=r"no states-\*\.ckpt"):
        checkpoints.locate(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoints.locate(tmp_path / "nowhere")


def test_heads_of_s3prl_with_their_arguments_can_be_read(tmp_path: Path):
    path = tmp_path / "hubert_ks.ckpt"
    torch.save({"Downstream": {"w": torch.ones(2)}, "Args": argparse.Namespace(seed=1)}, path)
    assert torch.equal(checkpoints.read_tensors(path)["Downstream"]["w"], torch.ones(2))
