"""One pool of workers reads what the loaders of the tasks would read one by one."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet, MonoCut
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as WithWorkers

from s3prl_mtl.data import UnreadableAudio
from s3prl_mtl.data.batching import BatchSource
from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.data.pool import LoaderPool
from s3prl_mtl.data.streams import Round, TaskStream
from s3prl_mtl.data.workers import default_workers
from s3prl_mtl.errors import UserError
from tests.mistakes import user_error


@pytest.fixture(autouse=True)
def quick_health_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders check their workers every 5 seconds; here every 0.1 seconds."""
    monkeypatch.setattr(WithWorkers._try_get_data, "__defaults__", (0.1,))


def cuts_of(count: int) -> CutSet:
    return CutSet.from_cuts(
        MonoCut(id=f"u{i:02d}", start=0, duration=1.0 + i % 5, channel=0) for i in range(count)
    )


def names_and_crops(cuts: Any, generators: Any) -> tuple[list[Any], ...]:
    waveforms = [torch.rand(5, generator=generator) for generator in generators]
    return waveforms, [cut.id for cut in cuts], [float(np.random.rand()) for _ in cuts]


class Offering:
    """An expert whose batches a pool may read."""

    def __init__(self, utterances: int, collate: Any = names_and_crops, **settings: Any) -> None:
        self.source = BatchSource(
            cuts=list(cuts_of(utterances)),
            collate=collate,
            **{"batch_size": 2, "seed": 3, "training": True} | settings,
        )

    def batch_source(self, split: str) -> BatchSource:
        return self.source

    def get_dataloader(
        self,
        split: str,
        epoch: int = 0,
        skip_batches: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> Any:
        return self.source.loader(epoch, shares, num_shares, skip_batches)


class Stranger:
    """An expert with s3prl's contract: its loader shuffles by the global random state."""

    def get_dataloader(self, split: str) -> DataLoader[Any]:
        return DataLoader([*range(7)], batch_size=2, shuffle=True, collate_fn=self.collate)

    @staticmethod
    def collate(items: list[int]) -> tuple[list[Any], ...]:
        return [torch.zeros(1) for _ in items], items


def make_streams(
    shares: Sequence[int] = (0,), num_shares: int = 1, **experts: Any
) -> list[TaskStream]:
    if not experts:
        weights = np.arange(1, 10)
        experts = {
            "long": Offering(23),
            "stranger": Stranger(),
            "short": Offering(5, batch_size=1),
            "weighted": Offering(9, weights=weights),
            "bucketed": Offering(12, bucketed=True),
            "sliding": Offering(6, sliding=True),
        }
    return [
        TaskStream(name, expert, "train", seed=3, shares=shares, num_shares=num_shares)
        for name, expert in experts.items()
    ]


def plain(batches: Sequence[Batch]) -> list[Any]:
    return [
        (b.task, b.number, [torch.as_tensor(wav).tolist() for wav in b.wavs], b.others)
        for b in batches
    ]


def states(streams: Sequence[TaskStream]) -> list[Any]:
    return [(stream.state_dict(), stream.epoch_batches) for stream in streams]


def one_by_one(streams: Sequence[TaskStream], draws: int) -> list[Any]:
    """The batches and the positions after each draw, without a pool."""
    found = []
    for _ in range(draws):
        batches = [batch for stream in streams for batch in stream.next_round()]
        found.append((plain(batches), states(streams)))
    return found


def pooled(streams: Sequence[TaskStream], draws: int, num_workers: int = 0) -> list[Any]:
    pool = LoaderPool(streams, num_workers)
    return [(plain(pool.draw()), states(streams)) for _ in range(draws)]


def children() -> set[Any]:
    return set(multiprocessing.active_children())


def kill(processes: set[Any]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize(("shares", "num_shares"), [((0,), 1), ((2, 0), 3)])
def test_a_draw_is_the_next_round_of_every_loader(
    num_workers: int, shares: Sequence[int], num_shares: int
):
    # The longest epoch has 12 rounds, the shortest 2.
    expected = one_by_one(make_streams(shares, num_shares), 15)
    torch.manual_seed(num_workers)
    assert pooled(make_streams(shares, num_shares), 15, num_workers) == expected


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 11])
def test_reading_resumes_anywhere_with_another_number_of_workers(stop: int):
    expected = one_by_one(make_streams(), 14)
    first = make_streams()
    assert pooled(first, stop, num_workers=2) == expected[:stop]
    for num_workers in (0, 1):
        resumed = make_streams()
        for stream, before in zip(resumed, first, strict=True):
            stream.load_state_dict(before.state_dict())
        assert pooled(resumed, 14 - stop, num_workers) == expected[stop:]


def test_a_pool_follows_streams_that_are_set_to_another_position():
    expected = one_by_one(make_streams(), 9)
    streams = make_streams()
    begin = [stream.state_dict() for stream in streams]
    pool = LoaderPool(streams, num_workers=2)
    for draws in (5, 9):
        for stream, state in zip(streams, begin, strict=True):
            stream.load_state_dict(state)
        assert [(plain(pool.draw()), states(streams)) for _ in range(draws)] == expected[:draws]


def test_a_position_that_does_not_exist_is_an_error():
    streams = make_streams(x=Offering(6))
    streams[0].load_state_dict({"epoch": 1, "round": 3, "num_shares": 1, "batch_size": 1})
    (batch,) = LoaderPool(streams).draw()
    assert (streams[0].epoch, streams[0].round, batch.number) == (2, 1, 0)
    streams[0].load_state_dict({"epoch": 1, "round": 4, "num_shares": 1, "batch_size": 1})
    with user_error("resume-conflict", where="batch 4 of 3"):
        LoaderPool(streams).draw()


def test_reading_does_not_touch_the_global_random_state():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    pooled(make_streams(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


# ------------------------------------------------------------------------------ workers


def test_all_tasks_share_the_workers_and_close_ends_them():
    before = children()
    streams = make_streams()
    pool = LoaderPool(streams, num_workers=2)
    for _ in range(5):
        pool.draw()
        assert len(children() - before) == 2
    pool.close()
    assert children() <= before
    expected = one_by_one(make_streams(), 6)[-1]
    assert (plain(pool.draw()), states(streams)) == expected


def test_strangers_alone_start_no_worker():
    before = children()
    assert pooled(make_streams(x=Stranger()), 2, num_workers=2)
    assert children() <= before


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_read_a_bounded_number_of_draws_ahead(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
):
    streams = make_streams(x=Offering(100))
    asked: list[int] = []

    def counted(source: BatchSource) -> Iterator[Round]:
        for planned in TaskStream.ahead(streams[0], source):
            asked.append(planned.number)
            yield planned

    monkeypatch.setattr(streams[0], "ahead", counted)
    pool = LoaderPool(streams, num_workers)
    for number in range(6):
        pool.draw()
        assert len(asked) - number - 1 == max(2, num_workers)


def test_killed_workers_are_replaced_and_no_batch_is_lost(caplog: pytest.LogCaptureFixture):
    expected = one_by_one(make_streams(), 14)
    before = children()
    streams = make_streams()
    pool = LoaderPool(streams, num_workers=2)
    found = []
    with caplog.at_level(logging.WARNING):
        for number in range(14):
            if number in (3, 9):
                kill(children() - before)
            found.append((plain(pool.draw()), states(streams)))
    assert found == expected
    assert [r.name for r in caplog.records] == 2 * ["s3prl_mtl.data.workers"]


def deadly(cuts: Any, generators: Any) -> tuple[list[Any], ...]:
    if get_worker_info() is not None and any(cut.id == "u05" for cut in cuts):
        os.kill(os.getpid(), signal.SIGKILL)
    return names_and_crops(cuts, generators)


def test_repeated_worker_deaths_are_an_error():
    streams = make_streams(x=Offering(8), y=Offering(8, deadly))
    pool = LoaderPool(streams, num_workers=1)
    with user_error("worker-died", where="num_workers") as caught:
        for _ in range(4):
            pool.draw()
    assert " 3 " in caught.value.what


# ------------------------------------------------------------------------------- errors


def broken(cuts: Any, generators: Any) -> tuple[list[Any], ...]:
    if any(cut.id == "u07" for cut in cuts):
        raise KeyError("label")
    return names_and_crops(cuts, generators)


def refused(cuts: Any, generators: Any) -> tuple[list[Any], ...]:
    if any(cut.id == "u07" for cut in cuts):
        raise UserError("Bad label.", where="labels.txt:5", code="label-invalid")
    return names_and_crops(cuts, generators)


def damaged(cuts: Any, generators: Any) -> tuple[list[Any], ...]:
    for cut in cuts:
        if cut.id in ("u04", "u05"):
            raise UnreadableAudio("damaged", utterance_id=cut.id)
    return names_and_crops(cuts, generators)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("collate", "error"), [(broken, KeyError), (refused, UserError)], ids=["bug", "user"]
)
def test_an_error_is_raised_in_its_draw_and_can_be_met_again(
    num_workers: int, collate: Callable[..., Any], error: type[Exception]
):
    draws = one_by_one(make_streams(x=Offering(12)), 6)
    fails = next(number for number, (found, _) in enumerate(draws) if "u07" in found[0][3][0])
    assert fails > 0
    streams = make_streams(y=Offering(12), x=Offering(12, collate))
    pool = LoaderPool(streams, num_workers)
    for _ in range(fails):
        pool.draw()
    # The draw is not lost for `y`: trying again ends in the same error.
    for _ in range(2):
        with pytest.raises(error) as caught:
            pool.draw()
    if isinstance(caught.value, UserError):
        assert (caught.value.code, caught.value.where) == ("label-invalid", "labels.txt:5")
    elif num_workers:
        text = str(caught.value)
        assert all(part in text for part in ("reading x", __file__, "in broken", "'label'"))
    assert streams[1].round == fails


@pytest.mark.parametrize("num_workers", [0, 2])
def test_undecodable_utterances_are_replaced_as_by_a_loader(num_workers: int):
    expected = one_by_one(make_streams(x=Offering(12, damaged)), 8)
    assert pooled(make_streams(x=Offering(12, damaged)), 8, num_workers) == expected
    names = {name for found, _ in expected for batch in found for name in batch[3][0]}
    assert {"u03", "u06"} < names
    assert not names & {"u04", "u05"}


# ------------------------------------------------------------------------------- number


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 8, 4), (16, 8, 1)]
)
def test_the_default_number_of_workers_follows_from_the_cores_of_a_rank(
    cores: int, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_workers(ranks) == workers


def test_a_pool_that_is_forgotten_ends_its_workers():
    before = children()
    pool = LoaderPool(make_streams(), num_workers=1)
    pool.draw()
    workers = children() - before
    assert workers
    pool.cycle = pool  # type: ignore[attr-defined]
    del pool
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
