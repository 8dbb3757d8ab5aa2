"""Lines of the contract about loaders: what batches hold, and that they can be had again."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from s3prl_mtl.authoring.harness import Subject
from s3prl_mtl.authoring.processes import program_left_out, standard_error_kept
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.data.epoch_reader import Batch, EpochReader


def gives_batches(subject: Subject) -> str:
    expert = subject.build()
    task = subject.task(expert)
    seen = []
    for split, training in subject.splits(expert):
        count = 0
        for batch in _batches(subject, subject.reader(expert, split, training), training):
            if not batch.wavs:
                raise Broken(f"{split}: batch {batch.number} holds no utterance.")
            for wav in batch.wavs:
                _look_at(wav, f"{split}, batch {batch.number}")
            count += len(batch.wavs)
        if not count:
            raise Broken(f"the split {split!r} has no batch.")
        seen.append(f"{count} of {split}")
    untrained = "" if task.train_split else " (it is not trained)"
    return f"utterances: {', '.join(seen)}{untrained}."


def _batches(subject: Subject, reader: EpochReader, training: bool) -> Iterator[Batch]:
    try:
        yield from subject.some(reader, training)
    except (TypeError, ValueError) as error:
        if "unpack" not in str(error):
            raise
        raise Broken(f"{reader.split}: a batch is not `(wavs, *others)`: {error}.") from error


def _look_at(wav: Any, where: str) -> None:
    waveform = torch.as_tensor(np.asarray(wav))
    if waveform.dim() != 1 or not waveform.is_floating_point():
        shape = tuple(waveform.shape)
        raise Broken(f"{where}: a waveform is {waveform.dtype} of the shape {shape}.")
    if len(waveform) < MINIMUM_SAMPLES:
        raise Broken(f"{where}: a waveform has {len(waveform)} samples only.")
    if not torch.isfinite(waveform).all():
        raise Broken(f"{where}: a waveform holds what is no finite number.")
    loudest = waveform.abs().max().item()
    if loudest > 1.0:
        raise Broken(f"{where}: a waveform goes up to {loudest:.3g}.")


def gives_them_again(subject: Subject) -> str:
    expert = subject.build()
    for split, training in subject.splits(expert):
        first = _read(subject, subject.reader(expert, split, training), training)
        again = _read(subject, subject.reader(expert, split, training), training)
        if first != again:
            raise Broken(f"{split}: read a second time the batches are others.")
        rest = _read(subject, subject.reader(expert, split, training, first_round=1), training)
        later = first[1:]
        if rest[: len(later)] != later:
            raise Broken(f"{split}: begun after the first batch, the rest is another.")
    return "read twice, and begun after the first batch."


def works_with_workers(subject: Subject) -> str:
    expert = subject.build()
    forked: list[str] = []
    spawned: list[str] = []
    kinds = set()
    for split, training in subject.splits(expert):
        reader = subject.reader(expert, split, training)
        loader = reader._loader
        if not isinstance(loader, DataLoader):
            continue
        for what in ("dataset", "collate_fn", "worker_init_fn"):
            try:
                pickle.dumps(getattr(loader, what))
            except Exception as error:
                raise Broken(f"{split}: its {what} cannot be pickled: {error}.") from error
        # A worker that is spawned takes seconds to start: one for each kind of data set.
        collate = loader.collate_fn
        kind = type(loader.dataset), collate if inspect.isfunction(collate) else type(collate)
        methods = ["fork"] if kind in kinds else ["fork", "spawn"]
        kinds.add(kind)
        loader.num_workers, loader.prefetch_factor = 0, None
        wanted = _read(subject, reader, training)
        for method in methods:
            if method not in torch.multiprocessing.get_all_start_methods():
                continue
            with_worker = subject.reader(expert, split, training, reader_class=MortalReader)
            assert isinstance(with_worker, MortalReader)
            if with_worker.read_by_a_worker(subject, method) != wanted:
                raise Broken(f"{split}: one worker ({method}) gives other batches than none.")
            (spawned if method == "spawn" else forked).append(split)
    if not spawned:
        raise NotApplicable("its loaders are none of torch's and have no workers.")
    return f"with one worker: {', '.join(forked)} (forked), {', '.join(spawned)} (spawned)."


STARTED = {"fork": "forked", "spawn": "spawned"}


class MortalReader(EpochReader):
    """Does not replace a worker that dies."""

    def _is_worker_death(self, error: Exception) -> bool:
        return False

    def read_by_a_worker(self, subject: Subject, method: str) -> list[str]:
        """The batches as one worker reads them.

        Raises:
            Broken: it died.
        """
        assert isinstance(self._loader, DataLoader)
        self._loader.num_workers, self._loader.prefetch_factor = 1, 2
        self._loader.multiprocessing_context = method
        with program_left_out(), standard_error_kept() as written:
            try:
                return _read(subject, self, self.training)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                self._iterator = None
                last = (written().strip().splitlines() or [str(error)])[-1].rstrip(".")
                raise Broken(
                    f"{self.split}: a worker that is {STARTED[method]} dies: {last}."
                ) from error


def _read(subject: Subject, reader: EpochReader, training: bool) -> list[str]:
    return ["+".join(digests(batch)) for batch in subject.some(reader, training)]


def digests(batch: Batch) -> list[str]:
    """What tells an utterance from others: its samples."""
    return [
        hashlib.blake2b(np.ascontiguousarray(wav).tobytes(), digest_size=12).hexdigest()
        for wav in batch.wavs
    ]


BATCH_CHECKS: dict[int, Check] = {
    4: gives_batches,
    5: gives_them_again,
    6: works_with_workers,
}
