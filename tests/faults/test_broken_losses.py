"""A task with a non-finite loss is dropped from the step on all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.tracking.recorder import read_metrics
from tests.faults.launching import TRACE, Launcher, words_of

Plugin = Callable[[str], dict[str, str]]

BROKEN_STEPS = {2: "nan", 4: "inf", 5: "-inf"}


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "broken"),
    [
        (2, 1),
        (2, 0),
        (1, 0),
    ],
)
def test_a_task_with_a_non_finite_loss_on_one_rank_is_dropped_on_all(
    ranks: int, broken: int, launch: Launcher, plugin: Plugin
):
    variables = plugin(
        "def fault(loss, call, utterances):\n"
        f"    values = {BROKEN_STEPS}\n"
        f"    if RANK == {broken} and call in values:\n"
        "        return loss * float(values[call])\n"
        "    return loss\n"
    )
    steps = 8
    words = words_of("ks,tones", steps, runner__max_keep=steps, optimizer__lr=1e-3)
    run = launch.finished(words, ranks=ranks, **variables)
    # Every save compares the weights of the ranks.
    for rank in range(ranks):
        assert run.logged("distributed.sync", rank=rank) == []
        warnings = run.logged("training.skips", rank=rank)
        assert all("tones" in warning for warning in warnings)
        assert [int(re.findall(r"\d+", w)[0]) for w in warnings] == list(BROKEN_STEPS)

    states = [checkpoints.load(path) for path in checkpoints.states_files(run.folder)]
    assert len(states) == steps
    for state in states:
        weights = [state.upstream, state.featurizer]
        weights += [task.head for task in state.tasks.values()]
        assert all(tensor.isfinite().all() for held in weights for tensor in held.values())
    for before, after in pairwise(states):
        one, two = before.tasks, after.tasks
        left_out = after.step in BROKEN_STEPS
        assert is_same(one["tones"].head, two["tones"].head) == left_out
        assert not is_same(one["ks"].head, two["ks"].head)
        assert not is_same(before.upstream, after.upstream)

    counts = {
        entry["step"]: entry["value"]
        for entry in read_metrics(run.folder)
        if (entry["task"], entry["metric"]) == ("run", "dropped_steps_tones")
    }
    assert counts == {2: 1, 3: 1, 4: 2, 5: 3, 6: 3, 7: 3, 8: 3}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_fifty_such_steps_in_a_row_end_the_run_with_the_name_of_the_task(
    ranks: int, launch: Launcher, plugin: Plugin
):
    variables = plugin(
        "def fault(loss, call, utterances):\n"
        f"    return loss * float('nan') if RANK == {ranks - 1} and call > 3 else loss\n"
    )
    words = words_of("tones", 100, runner__save_step=10)
    run = launch(words, ranks=ranks, **variables)
    code = run.wait()
    assert code == (2 if ranks == 1 else 1), run.terminal
    assert ranks == 1 or "exitcode  : 2" in run.terminal
    (error,) = run.logged("training.run_dir", "ERROR")
    assert "[non-finite]" in error
    assert "error: " in run.terminal and TRACE not in run.terminal
    assert "step 53, task tones" in run.terminal
    newest = checkpoints.load(checkpoints.states_files(run.folder)[-1])
    assert newest.step == 50
    assert newest.skips["dropped_steps"] == {"tones": 47}
