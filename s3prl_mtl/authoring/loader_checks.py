"""Clauses about data loaders: the contents of batches, and reading them again."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from s3prl_mtl.authoring.contract import NotApplicable, Violated, clause
from s3prl_mtl.authoring.harness import TaskHarness
from s3prl_mtl.authoring.processes import captured_stderr, without_main_module
from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.data.workers import WorkerDeaths


@clause(
    4,
    "batches",
    "`get_dataloader(split)` yields batches `(wavs, *others)` of at least one utterance, for every "
    "split of the task's settings. Waveforms are 1-D, at 16 kHz, finite, within [-1, 1], and at "
    "least 400 samples long.",
)
def yields_batches(harness: TaskHarness) -> str:
    expert = harness.build()
    task = harness.task(expert)
    seen = []
    for split, training in harness.splits(expert):
        count = 0
        for batch in _batches(harness, harness.reader(expert, split, training), training):
            if not batch.wavs:
                raise Violated(f"{split}: batch {batch.number} has no utterance.")
            for wav in batch.wavs:
                _check_waveform(wav, f"{split}, batch {batch.number}")
            count += len(batch.wavs)
        if not count:
            raise Violated(f"the split {split!r} has no batch.")
        seen.append(f"{count} of {split}")
    untrained = "" if task.train_split else " (the task is not trained)"
    return f"utterances: {', '.join(seen)}{untrained}."


def _batches(harness: TaskHarness, reader: EpochReader, training: bool) -> Iterator[Batch]:
    try:
        yield from harness.limited(reader, training)
    except (TypeError, ValueError) as error:
        if "unpack" not in str(error):
            raise
        raise Violated(f"{reader.split}: a batch is not `(wavs, *others)`: {error}.") from error


def _check_waveform(wav: Any, where: str) -> None:
    waveform = torch.as_tensor(np.asarray(wav))
    if waveform.dim() != 1 or not waveform.is_floating_point():
        shape = tuple(waveform.shape)
        raise Violated(f"{where}: a waveform has dtype {waveform.dtype} and shape {shape}.")
    if len(waveform) < MINIMUM_SAMPLES:
        raise Violated(f"{where}: a waveform has only {len(waveform)} samples.")
    if not torch.isfinite(waveform).all():
        raise Violated(f"{where}: a waveform has non-finite samples.")
    peak = waveform.abs().max().item()
    if peak > 1.0:
        raise Violated(f"{where}: a waveform has a peak of {peak:.3g}.")


@clause(
    5,
    "order of an epoch",
    "The batches of an epoch depend only on the seed and the number of the epoch: reading them "
    "twice gives the same batches, and reading can start after any of them.",
    needs=(4,),
)
def can_be_read_again(harness: TaskHarness) -> str:
    expert = harness.build()
    for split, training in harness.splits(expert):
        first = _read(harness, harness.reader(expert, split, training), training)
        second = _read(harness, harness.reader(expert, split, training), training)
        if first != second:
            raise Violated(f"{split}: a second reading gives other batches.")
        rest = _read(harness, harness.reader(expert, split, training, first_round=1), training)
        later = first[1:]
        if rest[: len(later)] != later:
            raise Violated(f"{split}: reading that starts after the first batch gives others.")
    return "read twice, and from the second batch."


@clause(
    6,
    "loader workers",
    "Loader workers can be used: whatever is sent to them can be pickled, and one worker, forked "
    "or spawned, gives the same batches as none.",
    needs=(5,),
)
def supports_workers(harness: TaskHarness) -> str:
    expert = harness.build()
    splits_by_method: dict[str, list[str]] = {"fork": [], "spawn": []}
    kinds = set()
    for split, training in harness.splits(expert):
        reader = harness.reader(expert, split, training)
        loader = reader._loader
        if not isinstance(loader, DataLoader):
            continue
        for name in ("dataset", "collate_fn", "worker_init_fn"):
            try:
                pickle.dumps(getattr(loader, name))
            except Exception as error:
                raise Violated(f"{split}: its {name} cannot be pickled: {error}.") from error
        # Spawning a worker takes seconds: once for each kind of data set.
        collate = loader.collate_fn
        kind = type(loader.dataset), collate if inspect.isfunction(collate) else type(collate)
        methods = ["fork"] if kind in kinds else ["fork", "spawn"]
        kinds.add(kind)
        loader.num_workers, loader.prefetch_factor = 0, None
        expected = _read(harness, reader, training)
        for method in methods:
            if method not in torch.multiprocessing.get_all_start_methods():
                continue
            with_worker = harness.reader(expert, split, training, reader_class=OneWorkerReader)
            assert isinstance(with_worker, OneWorkerReader)
            if with_worker.read_by_worker(harness, method) != expected:
                raise Violated(f"{split}: one worker ({method}) gives other batches than none.")
            splits_by_method[method].append(split)
    if not splits_by_method["spawn"]:
        raise NotApplicable("its loaders are not torch's and have no workers.")
    forked, spawned = map(", ".join, splits_by_method.values())
    return f"with one worker: {forked} (forked), {spawned} (spawned)."


class OneWorkerReader(EpochReader):
    """Reader with one worker, which is not restarted if it dies."""

    def read_by_worker(self, harness: TaskHarness, method: str) -> list[str]:
        """Digests of the batches that one worker reads.

        Raises:
            Violated: the worker died.
        """
        assert isinstance(self._loader, DataLoader)
        self._loader.num_workers, self._loader.prefetch_factor = 1, 2
        self._deaths = _Raised(self.split, "num_workers")
        self._loader.multiprocessing_context = method
        with without_main_module(), captured_stderr() as stderr:
            try:
                return _read(harness, self, self.training)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self._iterator = None
                last = (stderr().strip().splitlines() or [str(error)])[-1].rstrip(".")
                raise Violated(f"{self.split}: a worker ({method}) died: {last}.") from error


class _Raised(WorkerDeaths):
    def add(self, error: Exception, num_workers: int) -> None:
        raise error


def _read(harness: TaskHarness, reader: EpochReader, training: bool) -> list[str]:
    return ["+".join(digests(batch)) for batch in harness.limited(reader, training)]


def digests(batch: Batch) -> list[str]:
    """A digest of the samples of each utterance, which identifies it."""
    return [
        hashlib.blake2b(np.ascontiguousarray(wav).tobytes(), digest_size=12).hexdigest()
        for wav in batch.wavs
    ]
