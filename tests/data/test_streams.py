"""A stream of batches can be resumed anywhere, with our own and with third-party loaders."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from s3prl_mtl.data.streams import TaskStream
from tests.mistakes import user_error


class ThirdParty:
    """An expert with s3prl's contract: its loader shuffles with torch's global generator."""

    def __init__(self, utterances: int = 7, num_workers: int = 0) -> None:
        self.dataset = TensorDataset(torch.arange(utterances))
        self.num_workers = num_workers

    def get_dataloader(self, split: str):
        return DataLoader(
            self.dataset,
            batch_size=2,
            shuffle=True,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )

    @staticmethod
    def collate(items):
        return [torch.zeros(1) for _ in items], [int(item[0]) for item in items]


class Unsized(ThirdParty):
    """An expert with a loader without length."""

    def get_dataloader(self, split: str):
        return (batch for batch in super().get_dataloader(split))


class Empty:
    """An expert without utterances."""

    def get_dataloader(self, split: str):
        return []


class Ours:
    """An expert that supports epochs, shares and skipped batches: 3 rounds."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def get_dataloader(
        self, split: str, epoch: int = 0, skip_batches: int = 0, shares=(0,), num_shares: int = 1
    ):
        self.asked.append((epoch, skip_batches))
        numbers = [turn * num_shares + share for turn in range(3) for share in shares]
        return [([f"{epoch}"], [f"{epoch}.{i}"]) for i in numbers[skip_batches:]]


def drawn(stream: TaskStream, rounds: int) -> list:
    return [[batch.others for batch in stream.next_round()] for _ in range(rounds)]


def labels(batches) -> list[int]:
    return [label for batch in batches for label in batch.others[0]]


@pytest.mark.parametrize("expert", [ThirdParty, Unsized])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 9])
def test_third_party_batches_resume_as_if_uninterrupted(stop: int, expert: type):
    uninterrupted = drawn(TaskStream("x", expert(), "train", seed=3), 14)
    torch.manual_seed(99)
    stream = TaskStream("x", expert(), "train", seed=3)
    before = drawn(stream, stop)
    torch.manual_seed(100)
    resumed = TaskStream("x", expert(), "train", seed=3)
    resumed.load_state_dict(stream.state_dict())
    assert before + drawn(resumed, 14 - stop) == uninterrupted
    assert drawn(TaskStream("x", expert(), "train", seed=4), 14) != uninterrupted


def test_third_party_epochs_hold_every_utterance_once_in_different_orders():
    stream = TaskStream("x", ThirdParty(), "train", seed=0)
    epochs = [[label for _ in range(4) for label in labels(stream.next_round())] for _ in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("utterances", [7, 9, 12])
def test_processes_divide_every_epoch_of_a_third_party_loader(utterances: int):
    whole = TaskStream("x", ThirdParty(utterances), "train", seed=3)
    parts = [
        TaskStream("x", ThirdParty(utterances), "train", seed=3, shares=shares, num_shares=3)
        for shares in [(1,), (2, 0)]
    ]
    batches = (utterances + 1) // 2
    for epoch in range(2):
        expected = [whole.next_round()[0] for _ in range(batches)]
        found = []
        for _ in range((batches + 2) // 3):
            one, two = (part.next_round() for part in parts)
            assert [batch.number % 3 for batch in one] in ([1], [])
            assert [batch.number % 3 for batch in two] in ([2, 0], [0])
            found += one + two
        found.sort(key=lambda batch: batch.number)
        assert [(b.number, b.others) for b in found] == [(b.number, b.others) for b in expected]
        assert {part.epoch for part in parts} == {whole.epoch} == {epoch + 1}
        assert {part.epoch_batches for part in parts} == {batches}


def test_our_own_loaders_get_the_position():
    expert = Ours()
    stream = TaskStream("x", expert, "train", seed=0)
    assert drawn(stream, 4) == [[[["0.0"]]], [[["0.1"]]], [[["0.2"]]], [[["1.0"]]]]
    resumed = TaskStream("x", expert, "train", seed=0)
    resumed.load_state_dict(stream.state_dict())
    assert drawn(resumed, 3) == [[[["1.1"]]], [[["1.2"]]], [[["2.0"]]]]
    assert expert.asked == [(0, 0), (1, 0), (1, 1), (2, 0)]


def test_our_own_loaders_get_the_shares():
    stream = TaskStream("x", Ours(), "train", seed=0, shares=(3, 1), num_shares=4)
    drawn(stream, 1)
    state = stream.state_dict()
    assert state == {"epoch": 0, "round": 1, "num_shares": 4, "batch_size": 1}
    resumed = TaskStream("x", Ours(), "train", seed=0, shares=(3, 1), num_shares=4)
    resumed.load_state_dict(state)
    assert drawn(resumed, 1) == drawn(stream, 1) == [[[["0.7"]], [["0.5"]]]]
    assert [batch.number for batch in resumed.next_round()] == [11, 9]
    assert resumed.state_dict() == {"epoch": 1, "round": 0, "num_shares": 4, "batch_size": 1}


@pytest.mark.parametrize("old", [1, 2, 3, 5])
@pytest.mark.parametrize("new", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_with_another_number_of_shares_no_batch_of_the_epoch_is_skipped(
    old: int, new: int, rounds: int
):
    def stream(num_shares: int) -> TaskStream:
        shares = tuple(range(num_shares))
        return TaskStream(
            "x", ThirdParty(50), "train", seed=3, shares=shares, num_shares=num_shares
        )

    first = stream(old)
    had = {batch.number for _ in range(rounds) for batch in first.next_round()}
    second = stream(new)
    second.load_state_dict(first.state_dict())
    rest = set()
    while second.epoch == 0:
        rest |= {batch.number for batch in second.next_round()}
    assert had | rest == set(range(25))
    # At most one round is repeated.
    assert len(had & rest) < new


def test_a_position_past_the_end_with_another_number_of_shares_starts_the_next_epoch():
    stream = TaskStream("x", Unsized(), "train", seed=3)
    drawn(stream, 4)
    assert stream.state_dict() == {"epoch": 0, "round": 4, "num_shares": 1, "batch_size": 1}
    resumed = TaskStream("x", Unsized(), "train", seed=3, shares=(0, 1), num_shares=2)
    resumed.load_state_dict(stream.state_dict())
    resumed.next_round()
    assert resumed.state_dict() == {"epoch": 1, "round": 1, "num_shares": 2, "batch_size": 1}


def test_the_workers_of_an_epoch_end_with_its_last_batch():
    before = set(multiprocessing.active_children())
    stream = TaskStream("x", ThirdParty(num_workers=2), "train", seed=3)
    drawn(stream, 3)
    assert len(set(multiprocessing.active_children()) - before) == 2
    drawn(stream, 1)
    assert set(multiprocessing.active_children()) == before
    assert stream.state_dict() == {"epoch": 1, "round": 0, "num_shares": 1, "batch_size": 1}


def test_a_split_without_utterances_is_an_error():
    with user_error("corpus-empty", where="'train' of x"):
        TaskStream("x", Empty(), "train", seed=0).next_round()


class Sized(Ours):
    """An expert with a batch size in its settings, like the built-in tasks."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.datarc = {"train_batch_size": batch_size}


@pytest.mark.parametrize(("ranks", "size"), [(1, 8), (2, 8), (4, 1), (1, 3), (2, 4)])
def test_with_another_batch_size_no_utterance_of_the_epoch_is_skipped(ranks: int, size: int):
    state = {"epoch": 2, "round": 5, "num_shares": 2, "batch_size": 4}
    stream = TaskStream("x", Sized(size), "train", seed=0, num_shares=ranks)
    stream.load_state_dict(state)
    had, has = 5 * 2 * 4, stream.round * ranks * size
    assert stream.epoch == 2
    assert had - ranks * size < has <= had
