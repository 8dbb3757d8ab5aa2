"""The loss of `ssl` against fairseq 0.12.2: fixtures/ssl/make_with_fairseq.py made the numbers."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream_plugins.ssl import MaskedPrediction
from downstream_plugins.ssl.masked_prediction import class_logits, without_duplicates
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.hubert.fairseq_file import load_hubert
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

FIXTURES = Path(__file__).parents[1] / "fixtures"
ENCODERS = {
    "one_tied": "odd_large",
    "one_untied": "odd_large",
    "two_tied": "odd_base",
    "two_untied": "odd_frozen",
}
LOSS = ("pred_masked_weight", "pred_nomask_weight", "loss_weights")


class Case:
    """An encoder and the expert, with the weights, settings and batch of a fixture."""

    def __init__(self, name: str, folder: Path) -> None:
        self.truth = torch.load(FIXTURES / "ssl" / f"{name}.pt", weights_only=True)
        upstream = load_hubert(FIXTURES / "hubert" / f"{ENCODERS[name]}.pt").eval()
        if name == "two_tied":  # equal embeddings of two classes
            upstream.label_embs_concat.data[7] = upstream.label_embs_concat.data[6]
        settings = {key: value for key, value in self.truth["settings"].items() if key not in LOSS}
        losses = {key: self.truth["settings"][key] for key in LOSS}
        # fairseq's null means none; the task's means the setting of the checkpoint.
        losses["loss_weights"] = losses["loss_weights"] or []
        per_frame = 2 if name == "one_untied" else 1
        counts = [5 + 2 * index for index in range(len(self.truth["targets"]))]
        self.expert = MaskedPrediction(
            upstream_dim=upstream.hidden_size,
            upstream_rate=upstream.downsample_rate,
            downstream_expert={"modelrc": settings, "lossrc": losses},
            expdir=folder,
            labels={
                "label_rate": per_frame * 16_000 / upstream.downsample_rate,
                "dictionaries": {
                    f"km{index}": [str(symbol) for symbol in range(count)]
                    for index, count in enumerate(counts)
                },
            },
            upstream=upstream,
        )
        self.upstream = upstream
        targets = [target[:, ::per_frame] for target in self.truth["targets"]]
        self.others = [list(torch.stack(targets, dim=1)), self.truth["seeds"]]
        featurizer = Featurizer(upstream)
        self.encoder = SharedEncoder(upstream, featurizer, torch.device("cpu"), False, False)

    def inputs(self) -> list[Any]:
        return self.encoder.inputs(self.expert, "train", self.truth["wavs"], self.others)

    def logits(self, is_masked: bool) -> list[torch.Tensor]:
        """Of each label set: the target's, then those of all classes, as fairseq has them."""
        found = []
        inputs = self.inputs()
        states = torch.cat([utterance.states for utterance in inputs])
        rows = torch.cat([utterance.mask.frames for utterance in inputs]) == is_masked
        projected = self.expert.final_proj(states[rows])
        width = self.expert.label_embs_concat.shape[1]
        parts = projected.split(width, dim=1)
        for index, embeddings in enumerate(self.expert.label_embs_concat.split(self.expert.sizes)):
            embeddings = self.expert.target_glu(embeddings)
            targets = torch.cat(list(self.others[0]), dim=1)[index, rows]
            logits = class_logits(parts[index % len(parts)], embeddings, self.expert.logit_temp)
            logits = without_duplicates(logits, targets, embeddings)
            positive = logits.gather(1, targets[:, None])
            others = logits.scatter(1, targets[:, None], -torch.inf)
            found.append(torch.cat([positive, others], dim=1))
        return found


@pytest.fixture(params=ENCODERS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


def test_masks_equal_fairseqs(case: Case) -> None:
    frames = [case.upstream.num_frames(len(wav)) for wav in case.truth["wavs"]]
    masks = case.expert.masks("train", frames, *case.others)
    assert torch.equal(torch.stack([mask.frames for mask in masks]), case.truth["masks"])
    assert 0 < case.truth["masks"].float().mean() < 0.95


def test_loss_accuracy_and_penalty_equal_fairseqs(case: Case) -> None:
    records: dict[str, list[Any]] = defaultdict(list)
    inputs = case.inputs()
    loss = case.expert("train", inputs, *case.others, records=records)
    assert loss.item() == pytest.approx(case.truth["loss"], rel=1e-5, abs=1e-5)
    assert [int(x) for x in records["masked"][0]] == case.truth["correct"]["m"]
    assert [int(x) for x in records["unmasked"][0]] == case.truth["correct"]["u"]
    penalty = np.mean([utterance.penalty.item() for utterance in inputs])
    assert penalty == pytest.approx(case.truth["penalty"], rel=1e-5)
    scores = case.expert.measure("train", records)
    assert scores["bits"] == pytest.approx(case.truth["loss"] / np.log(2), rel=1e-5)


@pytest.mark.parametrize("is_masked", [True, False])
def test_logits_equal_fairseqs(case: Case, is_masked: bool) -> None:
    with torch.no_grad():
        found = case.logits(is_masked)
    wanted = case.truth["logits_m" if is_masked else "logits_u"]
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_gradients_equal_fairseqs(case: Case) -> None:
    loss = case.expert("train", case.inputs(), *case.others, records=defaultdict(list))
    loss.backward()
    found = {
        name: parameter.grad
        for module in (case.upstream, case.expert)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    assert found.keys() == case.truth["gradients"].keys()
    for name, wanted in case.truth["gradients"].items():
        torch.testing.assert_close(found[name], wanted, atol=1e-4, rtol=0, msg=name)
