"""A GPU that is too small: steps are divided into micro-batches on all ranks, with equal results.

A separate package brings an encoder that raises torch's OutOfMemoryError on one rank, in the
forward or in the backward pass, when it gets too many utterances at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.tracking.recorder import read_metrics
from tests.faults.launching import TRACE, Launcher, words_of

Plugin = Callable[[str], dict[str, str]]

# Without dropout, which draws other numbers in micro-batches.
LIMITED = """
import dataclasses
from s3prl_mtl.upstreams import HiddenStates, Hubert, load_upstream

LIMIT = int(os.environ.get("LIMIT", "1000000"))
PASS = os.environ.get("PASS", "forward")


class ShortOfMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states):
        return states.view_as(states)

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("out of memory, for a test")


class Limited(Hubert):
    def forward(self, wavs):
        hidden = super().forward(wavs)
        if self.training and len(wavs) > LIMIT and RANK == int(os.environ["SMALL"]):
            if PASS == "forward":
                raise torch.OutOfMemoryError("out of memory, for a test")
            return HiddenStates(ShortOfMemory.apply(hidden.states), hidden.lengths)
        return hidden


def limited(ckpt=None):
    whole = load_upstream("hubert_tiny")
    silent = dataclasses.replace(whole.config, dropout=0.0, attention_dropout=0.0)
    encoder = Limited(silent)
    encoder.load_state_dict(whole.state_dict())
    return encoder
"""

STEPS = 4
# Plain gradient descent: Adam makes as much of a gradient's rounding as of the gradient.
SETTINGS = {"optimizer__name": "SGD", "optimizer__lr": 0.1}


def weights(states: RunCheckpoint) -> dict[str, torch.Tensor]:
    held = {f"encoder/{name}": tensor for name, tensor in states.upstream.items()}
    for task, entry in states.tasks.items():
        held |= {f"{task}/{name}": tensor for name, tensor in entry.head.items()}
    return held


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("ranks", "small"), [(1, 0), (2, 1)])
def test_a_step_in_micro_batches_equals_the_whole_step(
    ranks: int, small: int, where: str, launch: Launcher, plugin: Plugin
):
    variables = {**plugin(LIMITED), "SMALL": str(small), "PASS": where}
    words = words_of("ks,er", STEPS, **SETTINGS)
    words[words.index("-u") + 1] = "limited"
    whole = launch.finished(words, name="whole", ranks=ranks, **variables)
    assert whole.logged("training.microbatch") == []
    divided = launch.finished(words, ranks=ranks, LIMIT="2", **variables)

    for rank in range(ranks):
        # The first step finds out that four micro-batches fit; the next ones start with four.
        attempts = [re.findall(r"\d+", w) for w in divided.logged("training.microbatch", rank=rank)]
        assert attempts == [["1", "2"], ["1", "4"]]
        assert divided.logged("distributed.sync", rank=rank) == []
    counts = {
        entry["step"]: entry["value"]
        for entry in read_metrics(divided.folder)
        if (entry["task"], entry["metric"]) == ("run", "steps_in_parts")
    }
    assert counts == {step: step for step in range(1, STEPS + 1)}

    one, two, first = (
        weights(checkpoints.load(folder / f"states-{step}.ckpt"))
        for folder, step in [(whole.folder, STEPS), (divided.folder, STEPS), (whole.folder, 3)]
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.allclose(first[name], one[name], rtol=1e-5, atol=1e-6) for name in one)


@pytest.mark.slow
def test_where_single_utterances_do_not_fit_the_run_ends_on_all_ranks(
    launch: Launcher, plugin: Plugin
):
    variables = {**plugin(LIMITED), "SMALL": "1", "LIMIT": "0"}
    words = words_of("ks,er", STEPS)
    words[words.index("-u") + 1] = "limited"
    run = launch(words, ranks=2, **variables)
    assert run.wait() == 1, run.terminal
    assert "exitcode  : 2" in run.terminal
    (error,) = run.logged("training.run_dir", "ERROR")
    assert "[out-of-memory]" in error
    assert "error: " in run.terminal and "1 utterances" in run.terminal
    assert TRACE not in run.terminal
