"""One epoch of one expert: chance apart, samplers that divide, workers that die."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet, MonoCut
from lhotse.dataset import SimpleCutSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    get_worker_info,
)
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as WithWorkers

from s3prl_mtl import load_task
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data import UnreadableAudio, make_loader
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.errors import UserError


class Utterances(Dataset):
    """Each item draws from all three generators."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.first = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[int, float]:
        return self.first + i, random.random() + np.random.rand() + torch.rand(()).item()


def collate(items: list[tuple[int, float]]) -> tuple[list[torch.Tensor], list[Any]]:
    return [torch.zeros(1)] * len(items), items


class Stranger:
    """An expert as people write them for s3prl, with whatever loader a test wants."""

    def __init__(self, dataset: Dataset | None = None, **settings: Any) -> None:
        self.dataset = Utterances(11) if dataset is None else dataset
        self.settings = settings

    def get_dataloader(self, split: str) -> DataLoader:
        defaults = {} if "batch_sampler" in self.settings else {"batch_size": 2}
        return DataLoader(self.dataset, collate_fn=collate, **defaults, **self.settings)


def read(expert: Any, **settings: Any) -> list[Batch]:
    return list(EpochReader("x", expert, "train", **{"seed": 3, "training": True} | settings))


def contents(batches: list[Batch]) -> list[tuple[int, Any]]:
    return [(batch.number, batch.others) for batch in batches]


def utterances(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index, _ in batch.others[0]]


def states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


# ------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_strangers_epoch_is_a_function_of_seed_task_split_and_epoch(num_workers: int):
    expert = Stranger(shuffle=True, num_workers=num_workers)
    first = contents(read(expert, epoch=2))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert contents(read(expert, epoch=2)) == first
    assert contents(read(expert, epoch=1)) != first
    assert contents(read(expert, epoch=2, seed=4)) != first
    for task, split in [("y", "train"), ("x", "dev")]:
        other = EpochReader(task, expert, split, seed=3, epoch=2, training=True)
        assert contents(list(other)) != first


def test_a_stranger_neither_reads_nor_changes_the_random_state_outside():
    before = states()
    reader = EpochReader("x", Stranger(shuffle=True), "train", seed=3, training=True)
    first = reader.next_round()
    assert states() == before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    between = states()
    rest = list(reader)
    assert states() == between
    assert contents([*first, *rest]) == contents(read(Stranger(shuffle=True)))


def test_a_failing_loader_gives_the_random_state_back():
    class Failing(Utterances):
        def __getitem__(self, i: int):
            super().__getitem__(i)
            raise KeyError("no such file")

    before = states()
    with pytest.raises(KeyError, match="no such file"):
        read(Stranger(Failing(4)))
    assert states() == before


# ------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("training", [True, False])
def test_the_shares_of_a_stranger_are_its_batches_dealt_out(training: bool):
    whole = contents(read(Stranger(shuffle=True), training=training))
    assert [number for number, _ in whole] == list(range(6))
    for shares in [(0,), (1,), (2,), (3,), (2, 0)]:
        part = read(Stranger(shuffle=True), training=training, shares=shares, num_shares=4)
        assert contents(part) == [entry for entry in whole if entry[0] % 4 in shares]


def test_the_rounds_of_a_stranger_end_together_for_every_share():
    readers = [
        EpochReader("x", Stranger(), "train", seed=3, shares=[i], num_shares=4, training=True)
        for i in range(4)
    ]
    rounds = [[reader.next_round() for _ in range(4)] for reader in readers]
    for share, (first, second, *over) in enumerate(rounds):
        assert [batch.number for batch in first] == [share]
        assert [batch.number for batch in second] == ([4 + share] if share < 2 else [])
        assert over == [None, None]


def test_an_epoch_of_a_stranger_is_entered_at_any_round():
    whole = contents(read(Stranger(shuffle=True)))
    for first_round in range(4):
        entered = read(Stranger(shuffle=True), shares=(1, 0), num_shares=2, first_round=first_round)
        assert contents(entered) == whole[2 * first_round :]


def test_a_stranger_that_takes_any_keyword_is_not_taken_for_one_that_knows_shares():
    class Greedy(Stranger):
        def get_dataloader(self, split: str, epoch: int, **arguments: Any) -> DataLoader:
            assert epoch == 5 and arguments == {}
            return super().get_dataloader(split)

    found = read(Greedy(), epoch=5, shares=(1,), num_shares=2)
    assert [batch.number for batch in found] == [1, 3, 5]


class Shared:
    """An expert on files of this package's loaders, asked for its shares."""

    def __init__(self, cuts: CutSet, collate: Any, num_workers: int = 0) -> None:
        self.cuts = cuts
        self.collate = collate
        self.num_workers = num_workers

    def get_dataloader(
        self,
        split: str,
        epoch: int = 0,
        skip_batches: int = 0,
        shares: Any = (0,),
        num_shares: int = 1,
    ) -> DataLoader:
        return make_loader(
            self.cuts,
            self.collate,
            batch_size=2,
            shuffle=split == "train",
            epoch=epoch,
            skip_batches=skip_batches,
            shares=shares,
            num_shares=num_shares,
            num_workers=self.num_workers,
        )


def silent_cuts(count: int) -> CutSet:
    return CutSet.from_cuts(
        MonoCut(id=f"u{i:02d}", start=0, duration=1.0, channel=0) for i in range(count)
    )


def names_only(cuts: Any, generators: Any) -> tuple[list[Any], list[str]]:
    return [None] * len(cuts), [cut.id for cut in cuts]


@pytest.mark.parametrize(("split", "batches"), [("train", 9), ("test", 8)])
def test_batches_are_numbered_over_all_shares(split: str, batches: int):
    # 15 utterances: the last round of two batches, 3 utterances, is dealt out as three.
    expert = Shared(silent_cuts(15), names_only)
    by_number = {}
    for shares in [(2, 0), (1,)]:
        reader = EpochReader(
            "x", expert, split, seed=3, shares=shares, num_shares=3, training=split == "train"
        )
        assert reader.num_batches == batches
        by_number.update(contents(list(reader)))
    assert sorted(by_number) == list(range(batches))
    whole = expert.get_dataloader(split, shares=range(3), num_shares=3)
    assert [by_number[i] for i in range(batches)] == [[names] for _, names in whole]


def test_rounds_of_shares_come_in_the_order_of_the_shares():
    expert = Shared(silent_cuts(16), names_only)
    reader = EpochReader(
        "x", expert, "train", seed=3, shares=(3, 1), num_shares=4, first_round=1, training=True
    )
    assert reader.num_batches == 8
    assert [batch.number for batch in reader.next_round()] == [7, 5]
    assert reader.next_round() is None


def names_but_of_two(cuts: Any, generators: Any) -> tuple[list[Any], list[str]]:
    damaged = [cut.id for cut in cuts if cut.id in ("u04", "u05")]
    if damaged:
        error = UnreadableAudio("damaged")
        error.utterance_id = damaged[0]
        raise error
    return names_only(cuts, generators)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_cannot_be_decoded_keep_their_numbers(num_workers: int):
    # Two of 200 utterances may be damaged; they are batch 2.
    expert = Shared(silent_cuts(200), names_but_of_two, num_workers)
    settings = {"seed": 3, "num_shares": 2, "training": False}
    even = list(EpochReader("x", expert, "test", shares=[0], **settings))
    odd = list(EpochReader("x", expert, "test", shares=[1], **settings))
    assert [batch.number for batch in even] == [i for i in range(0, 100, 2) if i != 2]
    assert [batch.number for batch in odd] == list(range(1, 100, 2))
    for batch in even + odd:
        first = 2 * batch.number
        assert batch.others == [[f"u{first:02d}", f"u{first + 1:02d}"]]


def test_a_batch_that_was_passed_over_is_not_read_twice_when_a_worker_dies():
    expert = Shared(silent_cuts(200), names_but_of_two, num_workers=1)
    before = children()
    reader = EpochReader("x", expert, "test", seed=3, training=False)
    iterator = iter(reader)
    found = [next(iterator).number for _ in range(5)]
    kill(children() - before)
    found += [batch.number for batch in iterator]
    assert found == [i for i in range(100) if i != 2]


def test_a_loader_that_does_not_say_its_length_has_none():
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[tuple[int, float]]:
            return iter([(i, 0.0) for i in range(5)])

    reader = EpochReader("x", Stranger(Endless()), "train", seed=3, training=True)
    assert reader.num_batches == 0
    assert utterances(list(reader)) == list(range(5))


# -------------------------------------------------------------- samplers that divide


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_distributed_sampler_is_told_to_leave_dividing_alone(drop_last: bool):
    class Distributed(Stranger):
        def get_dataloader(self, split: str) -> DataLoader:
            self.settings["sampler"] = DistributedSampler(
                self.dataset, num_replicas=4, rank=2, drop_last=drop_last
            )
            return super().get_dataloader(split)

    expert = Distributed()
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    assert reader.num_batches == 6
    first = utterances(list(reader))
    assert sorted(first) == list(range(11))
    shares = [utterances(read(expert, shares=[i], num_shares=2)) for i in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(11))
    order = list(DistributedSampler(expert.dataset, num_replicas=1, rank=0))
    assert first == order
    assert utterances(read(expert, epoch=7)) != order


def test_a_distributed_sampler_below_a_batch_sampler_is_found():
    dataset = Utterances(11)
    inner = DistributedSampler(dataset, num_replicas=2, rank=1)
    expert = Stranger(dataset, batch_sampler=BatchSampler(inner, 3, drop_last=False))
    found = read(expert)
    assert sorted(utterances(found)) == list(range(11)) and len(found) == 4


def test_a_sampler_of_lhotse_is_told_to_leave_dividing_alone():
    class Names(Dataset):
        def __getitem__(self, cuts: CutSet) -> tuple[list[Any], list[str]]:
            return names_only(cuts, None)

    class Lhotse:
        def get_dataloader(self, split: str) -> DataLoader:
            sampler = SimpleCutSampler(
                silent_cuts(11), max_cuts=2, shuffle=True, world_size=2, rank=1
            )
            return DataLoader(Names(), sampler=sampler, batch_size=None)

    def names(batches: list[Batch]) -> list[str]:
        return [name for batch in batches for name in batch.others[0]]

    expected = sorted(cut.id for cut in silent_cuts(11))
    first, second = read(Lhotse()), read(Lhotse(), epoch=1)
    assert sorted(names(first)) == sorted(names(second)) == expected
    assert names(first) != names(second)


def test_a_sampler_that_divided_when_it_was_made_is_refused():
    class Divided(Sampler):
        def __init__(self) -> None:
            self.num_replicas, self.rank, self.num_samples = 2, 1, 5

        def __iter__(self) -> Iterator[int]:
            return iter(range(1, 11, 2))

    with pytest.raises(UserError, match=r"^x: its loader's Divided divides the epoch"):
        read(Stranger(sampler=Divided()))


# ------------------------------------------------------------------- workers that die


@pytest.fixture(autouse=True)
def deaths_are_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader asks every 5 seconds whether its workers are alive; here ten times a second."""
    monkeypatch.setattr(WithWorkers._try_get_data, "__defaults__", (0.1,))


@pytest.fixture
def keywords(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> Any:
    """The expert of keyword spotting on the mini corpus, with two workers."""
    flags = {
        "downstream": ["ks"],
        "data": str(tiny_corpus),
        "ks.downstream_expert.datarc.num_workers": 2,
        "ks.downstream_expert.datarc.train_batch_size": 1,
    }
    settings = resolve(build_config(flags=flags))["ks"]["downstream_expert"]
    return load_task("ks")(24, 320, settings, tmp_path, seed=5, cache_dir=manifest_cache)


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.number == b.number
        and str(a.others) == str(b.others)
        and all(torch.equal(x, y) for x, y in zip(a.wavs, b.wavs, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def children() -> set[Any]:
    return set(multiprocessing.active_children())


def kill(processes: set[Any]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_killed_workers_are_replaced_and_no_batch_is_lost(keywords: Any, caplog: Any):
    def reader() -> EpochReader:
        return EpochReader(
            "ks", keywords, "train", seed=5, shares=(0, 2), num_shares=3, training=True
        )

    undisturbed = list(reader())
    assert len(undisturbed) > 12
    before = children()
    disturbed = reader()
    found = [*disturbed.next_round()]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            workers = children() - before
            assert len(workers) == 2
            kill(workers)
            # More than the two workers can have read before they were killed.
            for _ in range(3):
                found += disturbed.next_round()
    found += list(disturbed)
    assert equal(found, undisturbed)
    assert caplog.text.count("a worker that loads the split 'train' died") == 2
    assert children() == before


def test_one_killed_worker_of_two_is_enough(keywords: Any, caplog: Any):
    settings = {"seed": 5, "training": False}
    undisturbed = list(EpochReader("ks", keywords, "train", **settings))
    before = children()
    reader = EpochReader("ks", keywords, "train", **settings)
    disturbed = iter(reader)
    found = [next(disturbed)]
    kill({(children() - before).pop()})
    assert equal(found + list(disturbed), undisturbed)
    assert caplog.text.count("It is replaced and no batch is lost") == 1


def test_killed_workers_of_a_stranger_are_replaced_and_chance_is_repeated():
    expert = Stranger(Utterances(30), shuffle=True, num_workers=2)
    undisturbed = read(expert)
    before = children()
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round() + reader.next_round()
    kill(children() - before)
    assert contents(found + list(reader)) == contents(undisturbed)


class Deadly(Utterances):
    """Kills the worker that reads utterance 5."""

    def __getitem__(self, i: int) -> tuple[int, float]:
        if i == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_a_worker_that_dies_again_and_again_is_an_error_of_task_and_split(caplog: Any):
    reader = EpochReader("x", Stranger(Deadly(8), num_workers=1), "train", seed=3, training=True)
    found = []
    with pytest.raises(UserError, match=r"^x: workers .* split 'train' died 3 times in a row: "):
        while True:
            found += utterances(reader.next_round())
    # Batches that it had read before may be lost with it, but none may be had twice or be wrong.
    assert found in ([], [0, 1], [0, 1, 2, 3])
    assert caplog.text.count("It is replaced") >= 2


def test_deaths_with_a_batch_between_them_are_no_error():
    before = children()
    expert = Stranger(Utterances(30), num_workers=1)
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round()
    for _ in range(4):
        kill(children() - before)
        # The worker can have read two batches more before it was killed.
        for _ in range(3):
            found += reader.next_round()
    assert utterances(found) == list(range(26))


@pytest.fixture
def torch_installs_its_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has had no loader with workers yet; torch does it only once."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("torch_installs_its_handler")
def test_no_death_interrupts_what_is_done_between_two_batches(keywords: Any):
    before = children()
    reader = EpochReader("ks", keywords, "train", seed=5, training=True)
    reader.next_round()
    assert signal_handling._SIGCHLD_handler_set
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    for worker in children() - before:
        os.kill(worker.pid, signal.SIGKILL)
        # Dead and not yet taken note of: here torch's handler raises.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        assert reader.next_round()


@pytest.mark.usefixtures("torch_installs_its_handler")
def test_torchs_handler_is_taken_out_also_where_another_loader_installed_it():
    signal_handling._set_SIGCHLD_handler()
    assert callable(signal.getsignal(signal.SIGCHLD))
    read(Stranger())
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_a_mistake_in_a_worker_is_not_taken_for_its_death():
    class Broken(Utterances):
        def __getitem__(self, i: int) -> tuple[int, float]:
            raise FileNotFoundError(f"utterance {i}")

    before = children()
    with pytest.raises(FileNotFoundError, match="utterance 0"):
        read(Stranger(Broken(4), num_workers=1))
    # torch keeps the iterator in the cycle of error and frame; its worker need not wait for that.
    kill(children() - before)


def test_a_strangers_workers_outlive_the_signals_of_a_scheduler_and_are_prepared_as_it_wants():
    expert = Stranger(Utterances(30), num_workers=1, worker_init_fn=start_at_a_hundred)
    before = children()
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round()
    (worker,) = children() - before
    # Sent by another process than the worker's parent, as a scheduler's are.
    sender = multiprocessing.get_context("fork").Process(target=end, args=(worker.pid,))
    sender.start()
    sender.join()
    for _ in range(13):
        found += reader.next_round()
    assert children() - before == {worker}
    found += reader.next_round()
    assert utterances(found) == list(range(100, 130))


def start_at_a_hundred(worker: int) -> None:
    get_worker_info().dataset.first = 100


def end(process: int) -> None:
    os.kill(process, signal.SIGUSR1)
    os.kill(process, signal.SIGTERM)
