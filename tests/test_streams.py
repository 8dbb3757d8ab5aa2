"""A stream of batches can be left and entered anywhere, also with a stranger's loader."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from s3prl_mtl.errors import UserError
from s3prl_mtl.streams import TaskStream


class Stranger:
    """An expert whose loader shuffles with torch's own generator and knows no epochs."""

    def __init__(self) -> None:
        self.dataset = TensorDataset(torch.arange(7))

    def get_dataloader(self, split: str):
        return DataLoader(self.dataset, batch_size=2, shuffle=True, collate_fn=self.collate)

    @staticmethod
    def collate(items):
        return [torch.zeros(1) for _ in items], [int(item[0]) for item in items]


class Empty:
    """An expert whose split has no utterances."""

    def get_dataloader(self, split: str):
        return []


class Ours:
    """An expert that orders an epoch by its number and can begin it anywhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def get_dataloader(self, split: str, epoch: int = 0, skip_batches: int = 0):
        self.asked.append((epoch, skip_batches))
        return [([f"{epoch}"], [f"{epoch}.{i}"]) for i in range(skip_batches, 3)]


def drawn(stream: TaskStream, count: int) -> list:
    return [stream.next_batch()[1] for _ in range(count)]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 9])
def test_a_strangers_batches_go_on_as_if_nothing_had_happened(stop: int):
    torch.manual_seed(3)
    uninterrupted = drawn(TaskStream("x", Stranger(), "train"), 14)

    torch.manual_seed(3)
    stream = TaskStream("x", Stranger(), "train")
    before = drawn(stream, stop)
    state, random_state = stream.state_dict(), torch.get_rng_state()

    torch.manual_seed(99)
    resumed = TaskStream("x", Stranger(), "train")
    resumed.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert before + drawn(resumed, 14 - stop) == uninterrupted


def test_every_epoch_of_a_stranger_holds_every_utterance_once():
    stream = TaskStream("x", Stranger(), "train")
    for _ in range(3):
        epoch = [
            label for _, (labels,) in (stream.next_batch() for _ in range(4)) for label in labels
        ]
        assert sorted(epoch) == list(range(7))


def test_our_own_loaders_are_told_where_to_begin():
    expert = Ours()
    stream = TaskStream("x", expert, "train")
    assert drawn(stream, 4) == [[["0.0"]], [["0.1"]], [["0.2"]], [["1.0"]]]
    state = stream.state_dict()
    resumed = TaskStream("x", expert, "train")
    resumed.load_state_dict(state)
    assert expert.asked[-1] == (1, 1)
    assert drawn(resumed, 3) == [[["1.1"]], [["1.2"]], [["2.0"]]]


def test_a_split_without_utterances_is_an_error_not_an_endless_loop():
    with pytest.raises(UserError, match="'train' has no utterances"):
        TaskStream("x", Empty(), "train").next_batch()
