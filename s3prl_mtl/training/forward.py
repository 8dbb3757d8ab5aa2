"""The forward pass of a step: one encoder for the batches of all tasks, then their heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.task import Records, Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states


def forward(
    batches: Sequence[Batch],
    tasks: Mapping[str, Task],
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    records: Mapping[str, Records],
) -> list[Tensor]:
    """Encode all batches in one pass, then run each head on its own utterances.

    Args:
        batches: of any of the tasks.
        tasks: by name.
        encoder: of the run.
        specaug: applied to the features of every task, or None.
        records: for each task, the dictionary for the records of its expert.

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
