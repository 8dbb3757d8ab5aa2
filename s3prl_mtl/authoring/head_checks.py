"""Lines of the contract about heads: losses, gradients, weights, answers."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.authoring.harness import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.predictions import check_answers, task_label
from s3prl_mtl.training.microbatch import halves


def takes_every_batch(subject: Subject) -> str:
    expert = subject.build()
    seen = []
    for split, training in subject.splits(expert):
        expert.train(training)
        with torch.set_grad_enabled(training):
            reader = subject.reader(expert, split, training)
            losses = [
                _finite(subject.loss(expert, split, batch), split)
                for batch in subject.some(reader, training)
            ]
        seen.append(f"{split} {sum(losses) / len(losses):.3g}" if losses else f"{split} none")
    return f"mean losses: {', '.join(seen)}."


def has_gradients(subject: Subject) -> str:
    expert = subject.build()
    split = subject.task(expert).train_split
    if not split:
        raise NotApplicable("it is not trained.")
    expert.train()
    batch = subject.first_batch(expert, split, training=True)
    features = subject.features(expert, batch.wavs)
    loss = subject.loss(expert, split, batch, features=features)
    _finite(loss, split)
    if not loss.requires_grad:
        raise Broken("the loss does not depend on anything that could be trained.")
    loss.backward()
    parts = {f"the features of utterance {i}": x for i, x in enumerate(features)}
    parts |= {n: p for n, p in expert.named_parameters() if p.requires_grad}
    without = [name for name, part in parts.items() if part.grad is None]
    if without:
        raise Broken(f"no gradient reaches {', '.join(without[:3])}.")
    broken = [name for name, part in parts.items() if not _all_finite(part.grad)]
    if broken:
        raise Broken(f"the gradient is not finite for {', '.join(broken[:3])}.")
    if not any(bool(feature.grad.abs().sum()) for feature in features if feature.grad is not None):
        raise Broken("the gradient of the features is zero: the encoder would learn nothing.")
    return f"{len(parts)} gradients."


def takes_one_utterance(subject: Subject) -> str:
    expert = subject.build()
    seen = []
    for split, training in subject.splits(expert):
        batch = subject.first_batch(expert, split, training)
        while len(parts := halves(batch)) > 1:
            batch = parts[0]
        if batch.utterances > 1:
            continue
        expert.train(training)
        with torch.set_grad_enabled(training):
            _finite(subject.loss(expert, split, batch), split)
        seen.append(split)
    if not seen:
        raise NotApplicable(
            "its batches cannot be cut: what comes beside the waveforms has no entry for each."
        )
    return f"alone: {', '.join(seen)}."


def restores_its_weights(subject: Subject) -> str:
    expert = subject.build(seed=1)
    split, training = subject.splits(expert)[0]
    batch = subject.first_batch(expert, split, training)
    stored = io.BytesIO()
    torch.save(expert.state_dict(), stored)
    stored.seek(0)
    again = subject.build(seed=2)
    again.load_state_dict(torch.load(stored, weights_only=True))
    losses = []
    for one in (expert, again):
        one.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            losses.append(_finite(subject.loss(one, split, batch), split))
    if losses[0] != losses[1]:
        raise Broken(f"the loss was {losses[0]:.6g} and is {losses[1]:.6g} with the same weights.")
    return f"the loss is {losses[0]:.4g} both times."


def answers(subject: Subject) -> str:
    expert = subject.build()
    predict = getattr(expert, "predict", None)
    if predict is None:
        raise NotApplicable("it has no `predict`.")
    expert.eval()
    split, training = subject.splits(expert)[-1]
    wavs = subject.first_batch(expert, split, training).wavs
    with torch.no_grad():
        try:
            said = predict(subject.features(expert, wavs), [len(wav) for wav in wavs])
        except UserError as refusal:
            raise NotApplicable(f"it gives none: {refusal.what}") from refusal
    try:
        given = check_answers(said, len(wavs), task_label(subject.name, None))
    except UserError as refusal:
        raise Broken(refusal.what) from refusal
    return f"answers: {', '.join(given[0])}."


def _finite(loss: Any, split: str) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dim() != 0:
        what = f"of the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:60]
        raise Broken(f"{split}: the loss is no scalar tensor but {what}.")
    if not torch.isfinite(loss):
        raise Broken(f"{split}: the loss is {loss.item()}.")
    return float(loss.item())


def _all_finite(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.isfinite(gradient).all())


HEAD_CHECKS: dict[int, Check] = {
    8: takes_every_batch,
    9: has_gradients,
    10: takes_one_utterance,
    17: restores_its_weights,
    18: answers,
}
