"""Heads of SUPERB against losses, gradients and metrics of the original programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.metrics import frame_accuracy, frame_diarization_errors
from s3prl_mtl.nn import (
    AMSoftmaxLoss,
    DiarizationHead,
    XVector,
    ctc_loss,
    head_from_settings,
    match_length,
    pad_features,
    permutation_invariant_bce,
)

Golden = dict[str, Any]


class ProjectedHead(nn.Module):
    """The head of all tasks but `sv` and `sd`: a projector, then the model of the settings."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        settings: Mapping[str, Any] = golden["downstream_expert"]
        settings = settings.get("modelrc") or settings["model"]
        state = golden["state_dict"]
        outputs = next(v for k, v in state.items() if k.endswith("linear.bias")).shape[0]
        width, input_dim = state["projector.weight"].shape
        self.projector = nn.Linear(input_dim, width)
        self.model = head_from_settings(width, outputs, settings)
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: list[Tensor]) -> Any:
        padded, lengths = pad_features(features)
        return self.model(self.projector(padded), lengths)


class SpeakerHead(nn.Module):
    def __init__(self, golden: Golden) -> None:
        super().__init__()
        modelrc = golden["downstream_expert"]["modelrc"]
        width, input_dim = golden["state_dict"]["connector.weight"].shape
        self.connector = nn.Linear(input_dim, width)
        self.model = XVector(width, **modelrc["module_config"]["XVector"])
        self.objective = AMSoftmaxLoss(
            width, len(golden["labels"]["speakers"]), **modelrc["LossConfig"]["AMSoftmaxLoss"]
        )
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        padded, lengths = pad_features(features)
        return self.connector(padded), lengths


class TurnHead(nn.Module):
    def __init__(self, golden: Golden) -> None:
        super().__init__()
        self.model = DiarizationHead(
            golden["state_dict"]["model.rnn.weight_ih_l0"].shape[1],
            golden["labels"]["speakers_per_recording"],
            **golden["downstream_expert"]["modelrc"],
        )
        self.register_buffer("best_score", torch.zeros(1))


def ctc(head: ProjectedHead, features: list[Tensor], others: list[Any]) -> Tensor:
    return ctc_loss(*head(features), others[0])


def classification(head: ProjectedHead, features: list[Tensor], others: list[Any]) -> Tensor:
    return F.cross_entropy(head(features), torch.tensor(others[0]))


def intent(head: ProjectedHead, features: list[Tensor], others: list[Any]) -> Tensor:
    slots = zip(head(features).split([6, 14, 4], dim=1), torch.stack(others[0]).T, strict=True)
    return sum(F.cross_entropy(logits, values) for logits, values in slots)


def verification(head: SpeakerHead, features: list[Tensor], others: list[Any]) -> Tensor:
    return head.objective(head.model(*head(features)), torch.tensor(others[1]))


def diarization(head: TurnHead, features: list[Tensor], others: list[Any]) -> Tensor:
    labels, lengths = pad_features(others[0])
    frames, _ = pad_features(
        [match_length(f, n) for f, n in zip(features, lengths.tolist(), strict=True)]
    )
    return permutation_invariant_bce(head.model(frames), labels, lengths)[0]


LOSSES: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "asr": (ProjectedHead, ctc),
    "pr": (ProjectedHead, ctc),
    "sf": (ProjectedHead, ctc),
    "ks": (ProjectedHead, classification),
    "sid": (ProjectedHead, classification),
    "er": (ProjectedHead, classification),
    "ic": (ProjectedHead, intent),
    "sv_train": (SpeakerHead, verification),
    "sd": (TurnHead, diarization),
}


def load(name: str, golden: Callable[[str], Golden]) -> tuple[Golden, nn.Module]:
    """The golden and its head, every parameter taken over by name, none missing or left."""
    expected = golden(name)
    head_type, _ = LOSSES.get(name, (SpeakerHead, verification))
    head = head_type(expected)
    head.load_state_dict(expected["state_dict"], strict=True)
    return expected, head.eval()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradients_equal_those_of_the_original_head(
    name: str, golden: Callable[[str], Golden]
) -> None:
    expected, head = load(name, golden)
    features = [f.clone().requires_grad_() for f in expected["features"]]
    loss = LOSSES[name][1](head, features, expected["others"])
    loss.backward()
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-5, atol=0.0)
    for feature, gradient in zip(features, expected["feature_grads"], strict=True):
        assert feature.grad is not None
        size = float(gradient.abs().max())
        torch.testing.assert_close(feature.grad, gradient, rtol=1e-5, atol=1e-5 * size)
    norms = {k: float(p.grad.norm()) for k, p in head.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(expected["param_grad_norms"], rel=1e-5)


def test_trial_scores_equal_those_of_the_original_head(golden: Callable[[str], Golden]) -> None:
    expected, head = load("sv_eval", golden)
    with torch.no_grad():
        embeddings = head.model.embed(*head(expected["features"]))
    one_side, other_side = embeddings.chunk(2)
    scores = F.cosine_similarity(one_side, other_side).tolist()
    assert scores == pytest.approx(expected["records"]["scores"], rel=1e-6)


def test_diarization_metrics_equal_those_of_the_original_head(
    golden: Callable[[str], Golden],
) -> None:
    expected, head = load("sd", golden)
    labels, lengths = pad_features(expected["others"][0])
    frames = [
        match_length(f, n) for f, n in zip(expected["features"], lengths.tolist(), strict=True)
    ]
    with torch.no_grad():
        logits = head.model(pad_features(frames)[0])
    _, orders = permutation_invariant_bce(logits, labels, lengths)
    # The original counts over the batch, at probability 0.5.
    reference = torch.cat([y[:n, o] for y, n, o in zip(labels, lengths, orders, strict=True)])
    decided = torch.cat([z[:n] > 0 for z, n in zip(logits, lengths, strict=True)])
    errors = frame_diarization_errors(reference, decided)
    assert frame_accuracy(reference, decided) == pytest.approx(
        expected["records"]["acc"][0], rel=1e-5
    )
    assert errors.error_rate == pytest.approx(expected["records"]["der"][0], rel=1e-5)
