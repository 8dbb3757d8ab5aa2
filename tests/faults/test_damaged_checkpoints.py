"""If the newest checkpoint is damaged, the previous one is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_mtl.checkpoint import files as checkpoints
from tests.faults.launching import TRACE, Launcher, Run, assert_ended_alike, words_of

WORDS = words_of("ks,er", 20)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_byte(path: Path) -> None:
    # Early in the file, where the weights are.
    place = path.stat().st_size // 10
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


def killed_with_two_checkpoints(run: Run) -> list[Path]:
    run.until_step(5)
    run.kill()
    files = checkpoints.states_files(run.folder)
    assert len(files) >= 2
    return files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "ranks"),
    [
        (flip_a_byte, 1),
        (truncate, 1),
        (empty, 1),
        (flip_a_byte, 2),
        (truncate, 2),
    ],
)
def test_the_checkpoint_before_is_used_and_this_is_logged(
    damage: Callable[[Path], None],
    ranks: int,
    launch: Launcher,
    uninterrupted: Callable[..., Path],
):
    run = launch(WORDS, ranks=ranks)
    *_, before, last = killed_with_two_checkpoints(run)
    damage(last)
    damaged = last.read_bytes()
    resumed = launch.finished(WORDS, "-a", ranks=ranks)
    # The log is not open yet when checkpoints are read.
    assert last.name in resumed.terminal and f"{last.name}.damaged" in resumed.terminal
    step = checkpoints.STATES_PATTERN.fullmatch(before.name)
    (resuming,) = resumed.logged("api.training", "INFO")
    assert step and str(before) in resuming and f"step {step[1]}" in resuming
    aside = last.with_name(f"{last.name}.damaged")
    assert aside.read_bytes() == damaged
    assert_ended_alike(run.folder, uninterrupted(WORDS, ranks), 20)


@pytest.mark.slow
def test_without_an_intact_checkpoint_nothing_is_trained_or_changed(launch: Launcher):
    run = launch(WORDS)
    files = killed_with_two_checkpoints(run)
    for path in files:
        flip_a_byte(path)
    kept = {path: path.read_bytes() for path in files}
    refused = launch(WORDS, "-a")
    assert refused.wait() == 2, refused.terminal
    assert all(path.name in refused.terminal for path in files) and TRACE not in refused.terminal
    assert {path: path.read_bytes() for path in files} == kept
