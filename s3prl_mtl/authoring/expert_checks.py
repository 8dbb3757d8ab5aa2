"""Clauses about an expert itself: construction, settings, loss, weights, predictions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl.authoring.contract import NotApplicable, Violated, clause, failure_summary
from s3prl_mtl.authoring.harness import NeedsData, TaskHarness, states_of
from s3prl_mtl.errors import UserError
from s3prl_mtl.inference.predictions import check_answers, task_label
from s3prl_mtl.training.microbatch import halves

MISSPELT = "zz_misspelt"

# -------------------------------------------------------------------- construction, settings


@clause(
    1,
    "construction",
    "The class is a `torch.nn.Module`. Its constructor takes `upstream_dim`, `upstream_rate`, "
    "`downstream_expert` and `expdir` by keyword, works with the settings of the `config.yaml` "
    "beside its module, and accepts the other keyword arguments of the runner.",
)
def can_be_built(harness: TaskHarness) -> str:
    expert = harness.build()
    if not isinstance(expert, nn.Module):
        raise Violated(f"it is a {type(expert).__name__}, not a torch.nn.Module.")
    count = sum(parameter.numel() for parameter in expert.parameters())
    return f"built with {count} parameters."


@clause(
    2,
    "label space",
    "`labels` holds the label space as plain JSON. Built with `labels=`, the expert needs nothing "
    "of the corpus and has the same parameters.",
)
def can_be_built_from_labels(harness: TaskHarness) -> str:
    expert = harness.build()
    labels = getattr(expert, "labels", None)
    if labels is None:
        raise NotApplicable(
            "it has no `labels`, so it can be evaluated and used only where its corpus is."
        )
    try:
        plain = json.loads(json.dumps(labels))
    except (TypeError, ValueError) as error:
        raise Violated(f"`labels` is not plain JSON: {error}.") from error
    if plain != labels:
        raise Violated("`labels` changes when it is written as JSON and read again.")
    try:
        rebuilt = harness.build(harness.without_corpus(), labels=plain)
    except Exception as error:
        raise Violated(
            f"it cannot be built without its corpus: {failure_summary(error)}."
        ) from error
    shapes = [{n: tuple(p.shape) for n, p in e.state_dict().items()} for e in (expert, rebuilt)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise Violated(f"built from its label space it has other parameters: {odd[0][0]}.")
    return "built from its label space, without a corpus."


@clause(
    3,
    "settings",
    "A misspelt setting is refused: `config.yaml` lists every setting, or the class checks them.",
)
def refuses_misspelt_settings(harness: TaskHarness) -> str:
    settings = harness.config.tasks[harness.name].downstream_expert
    sections = list(_sections(settings, f"{harness.name}.downstream_expert"))
    # An empty section is open: its reader checks the keys, as for a head that is not selected.
    closed = [path for path, empty in sections if not empty] or [sections[0][0]]
    for path in closed:
        if not _refuses(harness, f"{path}.{MISSPELT}=1"):
            raise Violated(f"{path}.{MISSPELT} is accepted.")
    unlisted = [_relative(path) for path, _ in sections if path not in closed]
    also = f"; {', '.join(unlisted)} is empty in `config.yaml` and accepts any key"
    return f"refused in {', '.join(map(_relative, closed))}{also if unlisted else ''}."


def _refuses(harness: TaskHarness, override: str) -> bool:
    try:
        config = harness.configure(override)
    except UserError:
        return True
    try:
        harness.build(config)
    except NeedsData:
        raise
    except Exception:
        return True
    return False


def _relative(path: str) -> str:
    return path.partition(".")[2]


def _sections(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, bool]]:
    """The key of every section of the settings, and whether it is empty."""
    yield path, not settings
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _sections(value, f"{path}.{key}")


# ---------------------------------------------------------------------- loss and gradients


@clause(
    8,
    "loss",
    "`forward(split, features, *others, records=...)` accepts the batches of every split and "
    "returns a finite scalar.",
)
def returns_finite_losses(harness: TaskHarness) -> str:
    expert = harness.build()
    seen = []
    for split, training in harness.splits(expert):
        expert.train(training)
        with torch.set_grad_enabled(training):
            reader = harness.reader(expert, split, training)
            losses = [
                finite_loss(harness.loss(expert, split, batch), split)
                for batch in harness.limited(reader, training)
            ]
        seen.append(f"{split} {sum(losses) / len(losses):.3g}" if losses else f"{split} none")
    return f"mean losses: {', '.join(seen)}."


@clause(
    9,
    "gradients",
    "The training loss has a finite gradient for the features and for every parameter.",
    needs=(8,),
)
def has_gradients(harness: TaskHarness) -> str:
    expert = harness.build()
    split = harness.task(expert).train_split
    if not split:
        raise NotApplicable("it is not trained.")
    expert.train()
    batch = harness.first_batch(expert, split, training=True)
    inputs = harness.inputs(expert, split, batch)
    features = [states_of(entry) for entry in inputs]
    loss = harness.loss(expert, split, batch, inputs=inputs)
    finite_loss(loss, split)
    if not loss.requires_grad:
        raise Violated("the loss does not depend on features or parameters.")
    loss.backward()
    tensors = {f"the features of utterance {i}": x for i, x in enumerate(features)}
    tensors |= {n: p for n, p in expert.named_parameters() if p.requires_grad}
    missing = [name for name, tensor in tensors.items() if tensor.grad is None]
    if missing:
        raise Violated(f"no gradient reaches {', '.join(missing[:3])}.")
    broken = [name for name, tensor in tensors.items() if not _all_finite(tensor.grad)]
    if broken:
        raise Violated(f"the gradient is not finite for {', '.join(broken[:3])}.")
    if not any(bool(feature.grad.abs().sum()) for feature in features if feature.grad is not None):
        raise Violated("the gradient of the features is zero: the encoder would learn nothing.")
    return f"{len(tensors)} gradients."


def finite_loss(loss: Any, split: str) -> float:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:60]
        raise Violated(f"{split}: the loss is not a scalar tensor: {found}.")
    if not torch.isfinite(loss):
        raise Violated(f"{split}: the loss is {loss.item()}.")
    return float(loss.item())


def _all_finite(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.isfinite(gradient).all())


@clause(
    10,
    "single utterances",
    "A batch may hold a single utterance.",
    needs=(8,),
)
def accepts_single_utterances(harness: TaskHarness) -> str:
    expert = harness.build()
    seen = []
    for split, training in harness.splits(expert):
        batch = harness.first_batch(expert, split, training)
        while len(parts := halves(batch)) > 1:
            batch = parts[0]
        if batch.utterances > 1:
            continue
        expert.train(training)
        with torch.set_grad_enabled(training):
            finite_loss(harness.loss(expert, split, batch), split)
        seen.append(split)
    if not seen:
        raise NotApplicable("its batches cannot be divided: `others` has no entry per utterance.")
    return f"alone, in {', '.join(seen)}."


# ------------------------------------------------------------------ weights and predictions


@clause(
    17,
    "weights",
    "`state_dict()` holds everything that was learned: loaded strictly into a new expert, it gives "
    "the same loss.",
    needs=(8,),
)
def restores_weights(harness: TaskHarness) -> str:
    expert = harness.build(seed=1)
    split, training = harness.splits(expert)[0]
    batch = harness.first_batch(expert, split, training)
    file = io.BytesIO()
    torch.save(expert.state_dict(), file)
    file.seek(0)
    restored = harness.build(seed=2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    losses = []
    for one in (expert, restored):
        one.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            losses.append(finite_loss(harness.loss(one, split, batch), split))
    if losses[0] != losses[1]:
        raise Violated(f"the loss is {losses[0]:.6g}, and {losses[1]:.6g} after restoring.")
    return f"the loss is {losses[0]:.4g} before and after."


@clause(
    18,
    "predictions",
    "`predict(features, lengths_samples)`, where defined, returns a dict of plain JSON for each "
    "utterance.",
)
def predicts(harness: TaskHarness) -> str:
    expert = harness.build()
    predict = getattr(expert, "predict", None)
    if predict is None:
        raise NotApplicable("it has no `predict`.")
    expert.eval()
    split, training = harness.splits(expert)[-1]
    wavs = harness.first_batch(expert, split, training).wavs
    with torch.no_grad():
        try:
            returned = predict(harness.prediction_inputs(expert, wavs), [len(wav) for wav in wavs])
        except UserError as refusal:
            raise NotApplicable(f"`predict` refuses: {refusal.what}") from refusal
    try:
        predictions = check_answers(returned, len(wavs), task_label(harness.name, None))
    except UserError as refusal:
        raise Violated(refusal.what) from refusal
    return f"keys: {', '.join(predictions[0])}."
