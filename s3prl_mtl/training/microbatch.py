"""One pass of the network over batches of several tasks, and their division into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states


def split_batches(batches: Sequence[Batch], parts: int) -> list[list[Batch]]:
    """Divide batches into micro-batches of about equal length in samples.

    Whole batches stay together as long as there are several; then a batch is divided between its
    utterances, in their order.

    Args:
        batches: of any tasks.
        parts: a power of two. Where there are fewer utterances than parts some micro-batches are
            empty, so that every rank has the same number.
    """
    if parts == 1:
        return [list(batches)]
    first, second = _in_two(list(batches))
    return split_batches(first, parts // 2) + split_batches(second, parts // 2)


def _in_two(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    if len(batches) == 1:
        batches = halves(batches[0])
    half = sum(batch.samples for batch in batches) / 2
    samples = 0
    for count, batch in enumerate(batches, 1):
        samples += batch.samples
        if samples >= half or count == len(batches) - 1:
            return batches[:count], batches[count:]
    return batches, []


def halves(batch: Batch) -> list[Batch]:
    """The utterances of a batch as two batches; the batch itself where it cannot be divided.

    It can be if everything beside the waveforms is a sequence with an entry for each utterance.
    """
    middle = batch.utterances // 2
    if middle == 0 or not all(_is_sliceable(other, batch.utterances) for other in batch.others):
        return [batch]
    return [
        Batch(
            batch.task,
            batch.number,
            batch.wavs[part],
            [None if other is None else other[part] for other in batch.others],
        )
        for part in (slice(None, middle), slice(middle, None))
    ]


def _is_sliceable(other: Any, utterances: int) -> bool:
    if other is None:
        return True
    sliceable = hasattr(other, "__len__") and not isinstance(other, Mapping | set)
    return sliceable and len(other) == utterances


def forward(
    batches: Sequence[Batch],
    tasks: Mapping[str, Task],
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    records: Mapping[str, dict[str, list[Any]]],
) -> list[Tensor]:
    """One pass of the encoder for all batches, then each head on its own utterances.

    Args:
        batches: of any of the tasks.
        tasks: by name.
        encoder: of the run.
        specaug: applied to the features of every task, or None.
        records: for each task, what its expert records into.

    Returns:
        the loss of each batch, a scalar.
    """
    if not batches:
        return []
    wavs = [wav for batch in batches for wav in batch.wavs]
    states: list[Tensor] = []
    if any(wants_hidden_states(tasks[batch.task].expert) for batch in batches):
        hidden = encoder.hidden_states(wavs)
        states, features = layers(hidden), encoder.weighted(hidden)
    else:
        features = encoder.features(wavs)
    if specaug is not None:
        features = specaug(features)
    losses = []
    first = 0
    for batch in batches:
        task = tasks[batch.task]
        inputs = states if wants_hidden_states(task.expert) else features
        own = inputs[first : first + batch.utterances]
        first += batch.utterances
        losses.append(
            task.expert(task.train_split, own, *batch.others, records=records[batch.task])
        )
    return losses
