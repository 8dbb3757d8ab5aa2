"""What goes through the network at once, and how it is cut when that is too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states


@dataclass
class Piece:
    """A batch of one task, or a part of one.

    Args:
        task: its name.
        number: of the batch in its epoch.
        wavs: waveforms.
        others: what else the loader gave, as it gave it.
    """

    task: str
    number: int
    wavs: list[Any]
    others: list[Any]

    @classmethod
    def of(cls, task: str, batch: Batch) -> Piece:
        return cls(task, batch.number, batch.wavs, batch.others)

    @property
    def utterances(self) -> int:
        return len(self.wavs)

    @property
    def samples(self) -> int:
        return sum(len(wav) for wav in self.wavs)

    def halves(self) -> list[Piece]:
        """Its utterances in two pieces; itself where it cannot be cut."""
        middle = self.utterances // 2
        if middle == 0 or any(not self._has_entry_each(other) for other in self.others):
            return [self]
        return [self._slice(slice(None, middle)), self._slice(slice(middle, None))]

    def _has_entry_each(self, other: Any) -> bool:
        if other is None:
            return True
        sliceable = hasattr(other, "__len__") and not isinstance(other, Mapping | set)
        return sliceable and len(other) == self.utterances

    def _slice(self, part: slice) -> Piece:
        others = [None if other is None else other[part] for other in self.others]
        return Piece(self.task, self.number, self.wavs[part], others)


def cut(pieces: Sequence[Piece], parts: int) -> list[list[Piece]]:
    """Cut work into parts of about equal length, each for a pass of its own.

    Whole batches stay together as long as there are any to be parted; after that batches are cut
    through, their utterances in the order they have.

    Args:
        pieces: batches.
        parts: a power of two. Where so many cannot be had some of them are empty, so that all
            ranks have the same number.
    """
    if parts == 1:
        return [list(pieces)]
    first, second = _two(list(pieces))
    return cut(first, parts // 2) + cut(second, parts // 2)


def _two(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    if len(pieces) == 1:
        pieces = pieces[0].halves()
    half = sum(piece.samples for piece in pieces) / 2
    samples = 0
    for count, piece in enumerate(pieces, 1):
        samples += piece.samples
        if samples >= half or count == len(pieces) - 1:
            return pieces[:count], pieces[count:]
    return pieces, []


def forward(
    pieces: Sequence[Piece],
    tasks: Mapping[str, Task],
    encoding: SharedEncoder,
    specaug: SpecAugment | None,
    records: Mapping[str, dict[str, list[Any]]],
) -> list[Tensor]:
    """One pass of the encoder for all pieces, then each head on its own utterances.

    Args:
        pieces: batches of any of the tasks.
        records: for each task, what its expert records into.

    Returns:
        the loss of each piece, a scalar.
    """
    if not pieces:
        return []
    wavs = [wav for piece in pieces for wav in piece.wavs]
    states: list[Tensor] = []
    if any(wants_hidden_states(tasks[piece.task].expert) for piece in pieces):
        hidden = encoding.hidden_states(wavs)
        states, features = layers(hidden), encoding.weighted(hidden)
    else:
        features = encoding.features(wavs)
    if specaug is not None:
        features = specaug(features)
    losses = []
    first = 0
    for piece in pieces:
        task = tasks[piece.task]
        inputs = states if wants_hidden_states(task.expert) else features
        own = inputs[first : first + piece.utterances]
        first += piece.utterances
        losses.append(
            task.expert(task.train_split, own, *piece.others, records=records[piece.task])
        )
    return losses
