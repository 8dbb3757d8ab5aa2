"""Epochs of experts: random state, shares, distributed samplers, dying workers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import threading
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
from tests.launcher import until
from tests.mistakes import user_error


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


class ThirdParty:
    """An expert with s3prl's contract and any DataLoader."""

    def __init__(self, dataset: Dataset | None = None, **settings: Any) -> None:
        self.dataset = Utterances(11) if dataset is None else dataset
        self.settings = settings

    def get_dataloader(self, split: str) -> DataLoader:
        defaults: dict[str, Any] = {"collate_fn": collate}
        if "batch_sampler" not in self.settings:
            defaults["batch_size"] = 2
        return DataLoader(self.dataset, **(defaults | self.settings))


def read(expert: Any, **settings: Any) -> list[Batch]:
    return list(EpochReader("x", expert, "train", **{"seed": 3, "training": True} | settings))


def contents(batches: list[Batch]) -> list[tuple[int, Any]]:
    return [(batch.number, batch.others) for batch in batches]


def utterances(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index, _ in batch.others[0]]


def states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


# --------------------------------------------------------------------------- random state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_third_party_epoch_is_a_function_of_seed_task_split_and_epoch(num_workers: int):
    expert = ThirdParty(shuffle=True, num_workers=num_workers)
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


def test_a_third_party_loader_neither_reads_nor_changes_the_global_random_state():
    before = states()
    reader = EpochReader("x", ThirdParty(shuffle=True), "train", seed=3, training=True)
    first = reader.next_round()
    assert states() == before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    between = states()
    rest = list(reader)
    assert states() == between
    assert contents([*first, *rest]) == contents(read(ThirdParty(shuffle=True)))


def test_a_failing_loader_restores_the_random_state():
    class Failing(Utterances):
        def __getitem__(self, i: int):
            super().__getitem__(i)
            raise KeyError("no such file")

    before = states()
    with pytest.raises(KeyError, match="no such file"):
        read(ThirdParty(Failing(4)))
    assert states() == before


# ------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("training", [True, False])
def test_third_party_shares_are_the_batches_in_turn(training: bool):
    whole = contents(read(ThirdParty(shuffle=True), training=training))
    assert [number for number, _ in whole] == list(range(6))
    for shares in [(0,), (1,), (2,), (3,), (2, 0)]:
        part = read(ThirdParty(shuffle=True), training=training, shares=shares, num_shares=4)
        assert contents(part) == [entry for entry in whole if entry[0] % 4 in shares]


def test_third_party_rounds_end_together_for_every_share():
    readers = [
        EpochReader("x", ThirdParty(), "train", seed=3, shares=[i], num_shares=4, training=True)
        for i in range(4)
    ]
    rounds = [[reader.next_round() for _ in range(4)] for reader in readers]
    for share, (first, second, *over) in enumerate(rounds):
        assert [batch.number for batch in first] == [share]
        assert [batch.number for batch in second] == ([4 + share] if share < 2 else [])
        assert over == [None, None]


def test_a_third_party_epoch_can_start_at_any_round():
    whole = contents(read(ThirdParty(shuffle=True)))
    for first_round in range(4):
        entered = read(
            ThirdParty(shuffle=True), shares=(1, 0), num_shares=2, first_round=first_round
        )
        assert contents(entered) == whole[2 * first_round :]


def test_arbitrary_keyword_arguments_do_not_count_as_support_for_shares():
    class Greedy(ThirdParty):
        def get_dataloader(self, split: str, epoch: int, **arguments: Any) -> DataLoader:
            assert epoch == 5 and arguments == {}
            return super().get_dataloader(split)

    found = read(Greedy(), epoch=5, shares=(1,), num_shares=2)
    assert [batch.number for batch in found] == [1, 3, 5]


class Shared:
    """An expert with a loader of this package, which supports shares."""

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
    # The last round, two batches with 3 utterances, is redistributed as three batches.
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
        raise UnreadableAudio("damaged", utterance_id=damaged[0])
    return names_only(cuts, generators)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_undecodable_batches_keep_their_numbers(num_workers: int):
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


def test_a_skipped_batch_is_not_read_again_after_a_worker_death():
    expert = Shared(silent_cuts(200), names_but_of_two, num_workers=1)
    before = children()
    reader = EpochReader("x", expert, "test", seed=3, training=False)
    iterator = iter(reader)
    found = [next(iterator).number for _ in range(5)]
    kill(children() - before)
    found += [batch.number for batch in iterator]
    assert found == [i for i in range(100) if i != 2]


def test_a_loader_without_length_has_zero_batches():
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[tuple[int, float]]:
            return iter([(i, 0.0) for i in range(5)])

    reader = EpochReader("x", ThirdParty(Endless()), "train", seed=3, training=True)
    assert reader.num_batches == 0
    assert utterances(list(reader)) == list(range(5))


# -------------------------------------------------------------- distributed samplers


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_distributed_sampler_is_made_to_read_everything(drop_last: bool):
    class Distributed(ThirdParty):
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
    expert = ThirdParty(dataset, batch_sampler=BatchSampler(inner, 3, drop_last=False))
    found = read(expert)
    assert sorted(utterances(found)) == list(range(11)) and len(found) == 4


def test_a_sampler_of_lhotse_is_made_to_read_everything():
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


def test_a_sampler_divided_at_construction_is_an_error():
    class Divided(Sampler):
        def __init__(self) -> None:
            self.num_replicas, self.rank, self.num_samples = 2, 1, 5

        def __iter__(self) -> Iterator[int]:
            return iter(range(1, 11, 2))

    with user_error("expert-invalid", where=r"^Divided\b.*\bget_dataloader\b.*\bx$"):
        read(ThirdParty(sampler=Divided()))


# --------------------------------------------------------------------- dying workers


@pytest.fixture(autouse=True)
def quick_health_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders check their workers every 5 seconds; here every 0.1 seconds."""
    monkeypatch.setattr(WithWorkers._try_get_data, "__defaults__", (0.1,))


@pytest.fixture
def keyword_expert(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> Any:
    """The expert of keyword spotting on the mini corpus, with two workers."""
    flags = {
        "downstream": ["ks"],
        "data": str(tiny_corpus),
        "ks.downstream_expert.datarc.num_workers": 2,
        "ks.downstream_expert.datarc.train_batch_size": 1,
    }
    settings = resolve(build_config(flags=flags)).tasks["ks"].downstream_expert
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


def deaths(caplog: Any) -> list[str]:
    """What the worker of every logged death was reading."""
    module = "s3prl_mtl.data.workers"
    return [record.args[0] for record in caplog.records if record.name == module]


def kill(processes: set[Any]) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_killed_workers_are_replaced_and_no_batch_is_lost(keyword_expert: Any, caplog: Any):
    def reader() -> EpochReader:
        return EpochReader(
            "ks", keyword_expert, "train", seed=5, shares=(0, 2), num_shares=3, training=True
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
            # More than the two workers had prefetched.
            for _ in range(3):
                found += disturbed.next_round()
    found += list(disturbed)
    assert equal(found, undisturbed)
    assert deaths(caplog) == 2 * ["ks, split 'train'"]
    assert children() == before


def test_one_killed_worker_of_two_is_enough(keyword_expert: Any, caplog: Any):
    settings = {"seed": 5, "training": False}
    undisturbed = list(EpochReader("ks", keyword_expert, "train", **settings))
    before = children()
    reader = EpochReader("ks", keyword_expert, "train", **settings)
    disturbed = iter(reader)
    found = [next(disturbed)]
    kill({(children() - before).pop()})
    assert equal(found + list(disturbed), undisturbed)
    assert deaths(caplog) == ["ks, split 'train'"]


def test_replaced_workers_of_a_third_party_loader_read_the_same_batches():
    expert = ThirdParty(Utterances(30), shuffle=True, num_workers=2)
    undisturbed = read(expert)
    before = children()
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round() + reader.next_round()
    kill(children() - before)
    assert contents(found + list(reader)) == contents(undisturbed)


class Long(Dataset):
    """Utterances whose batches do not fit in a pipe, and are not shared as tensors are."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> np.ndarray:
        return np.full(100_000, i)


@pytest.mark.parametrize("killed", [1, 2])
def test_a_worker_that_is_killed_while_it_sends_a_batch_is_replaced(killed: int):
    expert = ThirdParty(Long(), num_workers=2, collate_fn=lambda items: (items, items))
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round()
    # Both wait for room in the pipe, or for the one that does.
    workers = reader._reading()._workers
    until(lambda: all(Path(f"/proc/{w.pid}/stat").read_text().split()[2] == "S" for w in workers))
    for worker in workers[:killed]:
        worker.kill()
    found += list(reader)
    assert [wav[0] for batch in found for wav in batch.wavs] == list(range(12))


class Deadly(Utterances):
    """Kills the worker that reads utterance 5."""

    def __getitem__(self, i: int) -> tuple[int, float]:
        if i == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_repeated_worker_deaths_are_an_error(caplog: Any):
    reader = EpochReader("x", ThirdParty(Deadly(8), num_workers=1), "train", seed=3, training=True)
    found = []
    with user_error("worker-died", where=r"^x\..*\.num_workers$") as caught:
        while True:
            found += utterances(reader.next_round())
    assert all(value in caught.value.what for value in ("'train'", " 3 "))
    # Prefetched batches may be lost with the worker, but not repeated or changed.
    assert found in ([], [0, 1], [0, 1, 2, 3])
    assert deaths(caplog)[:2] == 2 * ["x, split 'train'"]


def test_worker_deaths_with_a_batch_between_them_are_not_an_error():
    before = children()
    expert = ThirdParty(Utterances(30), num_workers=1)
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round()
    for _ in range(4):
        kill(children() - before)
        # The worker may have prefetched two batches.
        for _ in range(3):
            found += reader.next_round()
    assert utterances(found) == list(range(26))


@pytest.fixture
def torch_installs_its_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo torch's one-time installation of its SIGCHLD handler."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("torch_installs_its_handler")
def test_a_worker_death_does_not_interrupt_code_between_two_batches(keyword_expert: Any):
    before = children()
    reader = EpochReader("ks", keyword_expert, "train", seed=5, training=True)
    reader.next_round()
    assert signal_handling._SIGCHLD_handler_set
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    for worker in children() - before:
        os.kill(worker.pid, signal.SIGKILL)
        # Dead but not reaped: torch's handler would raise here.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        assert reader.next_round()


@pytest.mark.usefixtures("torch_installs_its_handler")
def test_torchs_handler_is_removed_even_if_another_loader_installed_it():
    signal_handling._set_SIGCHLD_handler()
    assert callable(signal.getsignal(signal.SIGCHLD))
    read(ThirdParty())
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_an_exception_in_a_worker_does_not_count_as_its_death():
    class Broken(Utterances):
        def __getitem__(self, i: int) -> tuple[int, float]:
            raise FileNotFoundError(f"utterance {i}")

    before = children()
    with pytest.raises(FileNotFoundError, match="utterance 0"):
        read(ThirdParty(Broken(4), num_workers=1))
    # The traceback keeps the iterator, and with it the worker, alive.
    kill(children() - before)


@pytest.mark.parametrize("threads_in_forks", [False, True])
def test_third_party_workers_survive_stop_signals_and_keep_their_init_function(
    threads_in_forks: bool, monkeypatch
):
    monkeypatch.setattr(f"{__name__}._threads_in_forks", threads_in_forks)
    expert = ThirdParty(Utterances(30), num_workers=1, worker_init_fn=start_at_a_hundred)
    before = children()
    reader = EpochReader("x", expert, "train", seed=3, training=True)
    found = reader.next_round()
    (worker,) = children() - before
    # Sent by a process that is not the worker's parent, like a scheduler.
    sender = multiprocessing.get_context("fork").Process(target=end, args=(worker.pid,))
    sender.start()
    sender.join()
    for _ in range(13):
        found += reader.next_round()
    assert children() - before == {worker}
    found += reader.next_round()
    assert utterances(found) == list(range(100, 130))


_threads_in_forks = False


def _start_thread() -> None:
    """Start a thread in a forked process, as OpenTelemetry does."""
    if _threads_in_forks:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


os.register_at_fork(after_in_child=_start_thread)


def start_at_a_hundred(worker: int) -> None:
    get_worker_info().dataset.first = 100


def end(process: int) -> None:
    os.kill(process, signal.SIGUSR1)
    os.kill(process, signal.SIGTERM)
