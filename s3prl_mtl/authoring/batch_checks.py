"""Lines of the contract about loaders: what batches hold, and that they can be had again."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from s3prl_mtl.authoring.subject import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.reading import Batch, EpochReader


def gives_batches(subject: Subject) -> str:
    expert = subject.build()
    task = subject.task(expert)
    seen = []
    for split, training in subject.splits(expert):
        count = 0
        for batch in subject.some(subject.reader(expert, split, training), training):
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
    checked = []
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
        wanted = _read(subject, _with_workers(reader, 0), training)
        found = _read(subject, _with_workers(subject.reader(expert, split, training), 1), training)
        if found != wanted:
            raise Broken(f"{split}: one worker gives other batches than none.")
        checked.append(split)
    if not checked:
        raise NotApplicable("its loaders are none of torch's and have no workers.")
    return f"with one worker: {', '.join(checked)}."


def _with_workers(reader: EpochReader, count: int) -> EpochReader:
    loader = reader._loader
    loader.num_workers = count
    loader.prefetch_factor = 2 if count else None
    return reader


def two_shares_are_the_whole(subject: Subject) -> str:
    expert = subject.build()
    split = subject.task(expert).train_split
    if not split:
        raise NotApplicable("it is not trained.")
    rounds = subject.limit(training=True) or 0
    whole: list[str] = []
    ended = True
    for number, batch in enumerate(subject.reader(expert, split, True)):
        if number == 2 * rounds:
            ended = False
            break
        whole += _digests(batch)
    halves: list[str] = []
    for share in (0, 1):
        reader = subject.reader(expert, split, True, (share,), 2)
        done = 0
        while (ended or done < rounds) and (found := reader.next_round()) is not None:
            done += 1
            for batch in found:
                halves += _digests(batch)
    missing, extra = Counter(whole) - Counter(halves), Counter(halves) - Counter(whole)
    # One utterance cannot be shared by two, and comes with a later epoch.
    if extra or missing.total() > (1 if ended else 0):
        raise Broken(
            f"of {len(whole)} utterances {missing.total()} are in no share, and {extra.total()} "
            "are too many."
        )
    return f"{len(halves)} of {len(whole)} utterances, none twice."


def _read(subject: Subject, reader: EpochReader, training: bool) -> list[str]:
    return ["+".join(_digests(batch)) for batch in subject.some(reader, training)]


def _digests(batch: Batch) -> Iterable[str]:
    """What tells an utterance from others: its samples."""
    return [
        hashlib.blake2b(np.ascontiguousarray(wav).tobytes(), digest_size=12).hexdigest()
        for wav in batch.wavs
    ]


BATCH_CHECKS: dict[int, Check] = {
    4: gives_batches,
    5: gives_them_again,
    6: works_with_workers,
    7: two_shares_are_the_whole,
}
