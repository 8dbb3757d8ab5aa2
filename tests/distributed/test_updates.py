"""The update of several ranks equals that of one process with all their utterances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.config import build_config, parse_tasks
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.distributed.world import World
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.ranks import run_ranks

SMALL_HEADS = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"

# The utterances of a step, by task: how many each of four batches holds. Rank r of two has the
# batches r and r + 2; a task may be missing from a rank's step.
SIZES = {"asr": (2, 1, 3, 1), "ks": (4, 0, 1, 2), "er": (0, 3, 0, 0), "ic": (1, 2, 1, 3)}


def make_config(corpus: Path, cache: Path, tasks: str, **flags: Any) -> dict[str, Any]:
    settings = {
        "downstream": parse_tasks(tasks),
        "data": str(corpus),
        "cache_dir": str(cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "scheduler": None,
        "runner.total_steps": 100,
        "runner.test_first": False,
        "runner.gradient_clipping": 1.0,
    }
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return build_config(files=[SMALL_HEADS], flags=settings | dotted)


def without_dropout(runner: MultiTaskRunner) -> None:
    """Switch dropout off for good."""
    step = runner.training_step
    step.run.set_training(False)
    step.run.set_training = lambda training: None


def weights_of(runner: MultiTaskRunner) -> dict[str, torch.Tensor]:
    modules = {"encoder": runner.upstream, "featurizer": runner.featurizer}
    modules |= {name: task.expert for name, task in runner.tasks.items()}
    return {
        f"{prefix}/{name}": parameter.detach().clone()
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def give_batches(runner: MultiTaskRunner, own: Sequence[int], as_one: bool) -> None:
    """Give each task its utterances of some of the four batches of SIZES."""
    for name, task in runner.tasks.items():
        sizes = SIZES[name]
        expert = task.expert
        expert.datarc["train_batch_size"] = sum(sizes)
        reader = EpochReader(name, expert, task.train_split, seed=1, training=True)
        (whole,) = reader.next_round()
        batches = []
        for number in own:
            part = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
            if sizes[number]:
                others = [other[part] for other in whole.others]
                batches.append(Batch(name, number, whole.wavs[part], others))
        if as_one:
            batches = [whole]
        task.stream.expert.batch_source = lambda split: None  # not read by the pool
        task.stream.next_round = lambda batches=batches: batches


def one_step(
    world: World, config: dict[str, Any], folder: Path, per_rank: int | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
    """Weights before and after a step with the batches of SIZES; None: all of them as one."""
    runner = MultiTaskRunner(config, folder, world=world)
    without_dropout(runner)
    own = range(4) if per_rank is None else range(world.rank, 4, world.size)
    give_batches(runner, own, as_one=per_rank is None)
    before = weights_of(runner)
    report = runner.train_step()
    return before, weights_of(runner), report.losses


def assert_same_update(first, second, names=None) -> None:
    """The updates of all parameters are equal to a relative error of 1e-5."""
    before, after, _ = first
    whole = sum((after[name] - before[name]).square().sum() for name in before).sqrt()
    for name in names if names is not None else before:
        ours = second[1][name] - second[0][name]
        expected = after[name] - before[name]
        assert torch.equal(second[0][name], before[name]), name
        # Differences of float32 weights are rounded; biases with a true gradient of zero (those of
        # keys in attention) are rounding errors only, or zero by chance.
        rounding = 2**-23 * before[name].norm() + 1e-7 * whole
        error = (ours - expected).norm()
        assert error <= 1e-5 * expected.norm() + rounding, f"{name}: {error} of {expected.norm()}"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_with_batches_of_any_size_make_the_update_of_one_process(
    ranks: int, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    # Plain gradient descent with a rate of 1: the update is the clipped gradient itself.
    config = make_config(
        tiny_corpus,
        manifest_cache,
        ",".join(SIZES),
        optimizer={"name": "SGD", "lr": 1.0},
    )
    alone = run_ranks(1, one_step, config, tmp_path / "alone", None)[0]
    together = run_ranks(ranks, one_step, config, tmp_path / "together", 4 // ranks)
    for rank in together:
        assert_same_update(alone, rank)
        assert rank[2] == pytest.approx(alone[2], rel=1e-5)
    for name, value in together[0][1].items():
        assert torch.equal(value, together[-1][1][name]), "the ranks have drifted apart"


def adamw_step(world: World, config: dict[str, Any], folder: Path) -> dict[str, bool]:
    runner = MultiTaskRunner(config, folder, world=world)
    before = weights_of(runner)
    for _ in range(2):
        runner.train_step()
    return {name: torch.equal(value, before[name]) for name, value in weights_of(runner).items()}


@pytest.mark.slow
def test_the_optimizer_ignores_parameters_that_no_rank_used(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(
        tiny_corpus,
        manifest_cache,
        "ks,er",
        optimizer={"name": "AdamW", "lr": 0.1, "weight_decay": 0.5},
    )
    for unmoved in run_ranks(2, adamw_step, config, tmp_path / "run"):
        assert unmoved["encoder/mask_emb"], "weight decay moved a parameter without a gradient"
        assert not unmoved["encoder/encoder.layers.0.fc1.weight"]


def some_steps(
    world: World, config: dict[str, Any], folder: Path, steps: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, list[str]]]:
    runner = MultiTaskRunner(config, folder, world=world)
    without_dropout(runner)
    before = weights_of(runner)
    for _ in range(steps):
        runner.train_step()
    return before, weights_of(runner), list(runner.tasks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "placement"),
    [
        (2, "0:asr,ks,sd;1:pr,sf,ic,sid,er,sv"),
        (2, "0:asr,pr,sd,ks,ic;1:asr,sf,sid,er,sv"),
        (4, "0:asr;1:asr,sv;2:pr,sf,sd,sv;3:ks,ic,sid,er,asr"),
    ],
)
def test_task_parallel_ranks_make_the_update_of_data_parallel_ones(
    ranks: int, placement: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(tiny_corpus, manifest_cache, "all", optimizer={"name": "SGD", "lr": 1e-2})
    for task in config["downstream"]:
        # The tiny corpus has few utterances: every rank gets one of each task.
        config[task]["downstream_expert"]["datarc"]["train_batch_size"] = 1
    by_data = run_ranks(ranks, some_steps, config, tmp_path / "data", 1)
    config["distributed"] = {"parallel": "task", "placement": placement}
    by_task = run_ranks(ranks, some_steps, config, tmp_path / "task", 1)
    wanted = [set(entry.split(":")[1].split(",")) for entry in placement.split(";")]
    assert [set(tasks) for _, _, tasks in by_task] == wanted, "a rank builds its own experts only"
    for rank in by_task:
        assert_same_update(by_data[0], rank, names=rank[0])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "task"])
def test_accumulated_batches_of_two_ranks_are_those_of_one_process(
    parallel: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(
        tiny_corpus,
        manifest_cache,
        "ks,er",
        optimizer={"name": "SGD", "lr": 1.0},
        runner__gradient_accumulate_steps=2,
    )
    sizes = {"ks": 2, "er": 3}
    for task, size in sizes.items():
        config[task]["downstream_expert"]["datarc"]["train_batch_size"] = 2 * size
    alone = run_ranks(1, some_steps, config, tmp_path / "alone", 2)[0]
    # Two ranks with half the batch each draw the same utterances.
    for task, size in sizes.items():
        config[task]["downstream_expert"]["datarc"]["train_batch_size"] = size
    config["distributed"]["parallel"] = parallel
    for rank in run_ranks(2, some_steps, config, tmp_path / "two", 2):
        assert_same_update(alone, rank, names=rank[0])
