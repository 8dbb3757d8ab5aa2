"""The forward pass of a step: one encoder for the batches of all tasks, then their heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from s3prl_mtl.data.epoch_reader import Batch
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.training.microbatch import MicroBatch
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.sync_step import StepSync
from s3prl_mtl.training.task import Records, Task
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, input_kind


def forward(
    batches: Sequence[Batch],
    tasks: Mapping[str, Task],
    encoder: SharedEncoder,
    specaug: SpecAugment | None,
    records: Mapping[str, Records],
) -> list[Tensor]:
    """Encode all batches in one pass, then run each head on its own utterances.

    Frames are masked in the utterances of tasks that draw masks, and in no others.

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
    experts = [tasks[batch.task].expert for batch in batches]
    masks = [
        mask
        for batch, expert in zip(batches, experts, strict=True)
        for mask in encoder.masks(expert, tasks[batch.task].train_split, batch.wavs, batch.others)
    ]
    hidden = encoder.hidden_states(wavs, masks)
    # Each kind of input is computed only if a task takes it.
    kinds = [input_kind(expert) for expert in experts]
    inputs = {kind: encoder.inputs_of_kind(kind, hidden, masks) for kind in dict.fromkeys(kinds)}
    if specaug is not None and "features" in inputs:
        inputs["features"] = specaug(inputs["features"])
    losses = []
    first = 0
    for batch, expert, kind in zip(batches, experts, kinds, strict=True):
        own = inputs[kind][first : first + batch.utterances]
        first += batch.utterances
        split = tasks[batch.task].train_split
        losses.append(expert(split, own, *batch.others, records=records[batch.task]))
    return losses


def forward_pass(
    run: Run, micro_batch: MicroBatch, sync: StepSync, records: Mapping[str, Records]
) -> dict[str, Tensor]:
    """Encode a micro-batch and run the heads; this rank's summand in the mean loss of each task.

    Raises:
        OutOfMemory: on all ranks, if one ran out of memory.
    """
    losses: list[Tensor] = []
    if not sync.out_of_memory:
        with run.world.doing("computing the forward pass"), sync.catching_memory_errors():
            batches = sync.batches_of(micro_batch)
            losses = forward(batches, run.tasks, run.encoder, run.specaug, records)
    return sync.share_counts(micro_batch, losses, run.stop_asked())
