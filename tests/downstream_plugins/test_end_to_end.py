"""Every task on the mini corpus: from its config to batches, losses and metrics."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl import TaskExpert, load_task
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data.pool import LoaderPool
from s3prl_mtl.data.streams import TaskStream
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS
from tests.mistakes import user_error

WIDTH = 24
SMALL_HEADS = {
    "asr": {"modelrc": {"project_dim": 8, "RNNs": {"dim": [8, 8]}}},
    "pr": {"model": {"project_dim": 8}},
    "sf": {"model": {"project_dim": 8, "RNNs": {"dim": [8, 8]}}},
    "sv": {"modelrc": {"input_dim": 8, "module_config": {"XVector": {"agg_dim": 12}}}},
    "sd": {"modelrc": {"hidden_size": 8}},
}

Build = Callable[..., TaskExpert]


@pytest.fixture
def build(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> Build:
    """Builds the expert of a task with its default config, its head small."""

    def build(task: str, datarc: dict[str, Any] | None = None, **arguments: Any) -> TaskExpert:
        blocks = {**SMALL_HEADS.get(task, {}), "datarc": {"num_workers": 0, **(datarc or {})}}
        config = resolve(
            build_config(
                flags={
                    "downstream": [task],
                    "data": str(tiny_corpus),
                    **{
                        f"{task}.downstream_expert.{section}": values
                        for section, values in blocks.items()
                    },
                }
            )
        )
        settings = config.tasks[task].downstream_expert
        assert load_task(task).problems(settings) == []
        arguments = {"seed": 5, "cache_dir": manifest_cache, **arguments}
        return load_task(task)(WIDTH, 320, settings, tmp_path, **arguments)

    return build


def features_of(wavs: list[torch.Tensor], requires_grad: bool = False) -> list[torch.Tensor]:
    """Random features with as many frames as HuBERT gives."""
    generator = torch.Generator().manual_seed(sum(len(wav) for wav in wavs))
    return [
        torch.randn((len(wav) - 80) // 320, WIDTH, generator=generator).requires_grad_(
            requires_grad
        )
        for wav in wavs
    ]


def records_of(expert: TaskExpert, split: str) -> dict[str, list[Any]]:
    expert.eval()
    records: dict[str, list[Any]] = defaultdict(list)
    with torch.no_grad():
        for wavs, *others in expert.get_dataloader(split):
            expert(split, features_of(wavs), *others, records=records)
    return records


@pytest.fixture(params=BUILT_IN_TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_training_batch_reaches_every_parameter(task: str, build: Build) -> None:
    torch.manual_seed(0)
    expert = build(task)
    wavs, *others = next(iter(expert.get_dataloader(expert.train_split)))
    assert all(wav.ndim == 1 and wav.dtype == torch.float32 for wav in wavs)
    assert all(wav.abs().max() <= 1 for wav in wavs)
    features = features_of(wavs, requires_grad=True)

    loss = expert(expert.train_split, features, *others, records=defaultdict(list))
    loss.backward()

    assert math.isfinite(loss.item()) and loss.item() > 0
    assert all(feature.grad is not None for feature in features)
    without = [name for name, p in expert.named_parameters() if p.grad is None]
    assert without == []


def test_a_dev_epoch_gives_every_metric_within_its_range_and_a_first_best(
    task: str, build: Build, scalars: Any
) -> None:
    torch.manual_seed(0)
    expert = build(task)
    records = records_of(expert, expert.dev_split)

    saved = expert.log_records(expert.dev_split, records, scalars, 1)

    values = {tag.rpartition("-")[2]: value for tag, value in scalars.scalars.items()}
    always = [metric for metric in expert.metrics if not metric.optional]
    assert {metric.name for metric in always} <= values.keys()
    for metric in always:
        assert values[metric.name] >= 0
        if metric.better == "higher" or metric.name == "eer":
            assert values[metric.name] <= 1
    assert all(tag.startswith(f"{task}/{expert.dev_split}-") for tag in scalars.scalars)
    chosen = expert.selecting_metric
    if chosen.better == "lower" or values[chosen.name] > 0:
        assert saved == [f"{expert.dev_split}-best.ckpt"]
        assert expert.best_score.item() == pytest.approx(values[chosen.name])
    # No better than the best is not saved again.
    assert expert.log_records(expert.dev_split, records, scalars, 2) == []


def test_training_order_depends_on_seed_and_epoch_and_resumes_anywhere(
    task: str, build: Build
) -> None:
    expert = build(task)

    def batches(**arguments: int) -> list[tuple[Any, ...]]:
        loader = expert.get_dataloader(expert.train_split, **arguments)
        return list(islice(iter(loader), 4))

    def same(left: list[tuple[Any, ...]], right: list[tuple[Any, ...]]) -> bool:
        pairs = zip(left, right, strict=True)
        return all(
            len(a[0]) == len(b[0])
            and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
            for a, b in pairs
        )

    first = batches(epoch=1)
    assert same(first, batches(epoch=1))
    assert same(first[2:], batches(epoch=1, skip_batches=2)[:2])
    assert not same(first, batches(epoch=2))


def test_a_worker_process_reads_the_same_batches(task: str, build: Build) -> None:
    inside = next(iter(build(task).get_dataloader("train")))
    outside = next(iter(build(task, {"num_workers": 1}).get_dataloader("train")))
    for left, right in zip(inside[0], outside[0], strict=True):
        assert torch.equal(left, right)
    assert str(inside[1:]) == str(outside[1:])


def test_a_pool_reads_the_batches_of_the_loader(task: str, build: Build) -> None:
    expected = TaskStream(task, build(task), "train", seed=5)
    pool = LoaderPool([TaskStream(task, build(task), "train", seed=5)], num_workers=1)
    for _ in range(3):
        (inside,), (outside,) = expected.next_round(), pool.draw()
        assert inside.number == outside.number
        for left, right in zip(inside.wavs, outside.wavs, strict=True):
            assert torch.equal(left, right)
        assert str(inside.others) == str(outside.others)


def test_an_expert_with_a_loader_of_its_own_is_not_read_by_a_pool(task: str, build: Build) -> None:
    expert = build(task)
    assert expert.batch_source("train") is not None

    class Own(type(expert)):  # type: ignore[misc]
        def get_dataloader(self, *arguments: Any, **settings: Any) -> Any:
            return super().get_dataloader(*arguments, **settings)

    expert.__class__ = Own
    assert expert.batch_source("train") is None


def test_an_expert_survives_pickling(task: str, build: Build) -> None:
    # Loader workers get it that way where processes are not forked.
    expert = build(task)
    loader = pickle.loads(pickle.dumps(expert)).get_dataloader("train")
    assert torch.equal(next(iter(loader))[0][0], next(iter(expert.get_dataloader("train")))[0][0])


def test_the_label_space_rebuilds_the_same_head(task: str, build: Build) -> None:
    expert = build(task)
    again = build(task, labels=expert.labels)
    assert "corpus" not in vars(again)
    again.load_state_dict(expert.state_dict())


def test_an_empty_label_space_is_refused(task: str, build: Build) -> None:
    with user_error("invalid-value" if task == "sd" else "label-unknown", where="label"):
        build(task, labels={})
