"""Losses against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_mtl.nn import (
    AMSoftmaxLoss,
    ctc_loss,
    match_length,
    permutation_invariant,
    permutation_invariant_bce,
)


def collapse(path: tuple[int, ...]) -> list[int]:
    kept = [path[0], *(b for a, b in itertools.pairwise(path) if a != b)]
    return [token for token in kept if token != 0]


def negative_log_likelihood(logits: Tensor, target: list[int]) -> float:
    """Minus the log of the summed probability of every alignment."""
    probabilities = logits.softmax(dim=-1)
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        if collapse(path) == target:
            total += math.prod(float(probabilities[t, token]) for t, token in enumerate(path))
    return -math.log(total)


def test_ctc_is_the_likelihood_of_all_alignments_per_target_token() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 3)
    lengths = torch.tensor([5, 3, 4])
    targets = [torch.tensor([1, 1]), torch.tensor([2]), torch.tensor([1, 2, 1])]
    losses = [
        negative_log_likelihood(logits[b, : lengths[b]], targets[b].tolist()) / len(targets[b])
        for b in range(3)
    ]
    loss = ctc_loss(logits, lengths, targets)
    assert float(loss) == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_ctc_of_an_utterance_too_short_for_its_target_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([2]), [torch.tensor([1, 1])])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    infinite = ctc_loss(logits, torch.tensor([2]), [torch.tensor([1, 1])], zero_infinity=False)
    assert float(infinite.detach()) == math.inf


@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_ctc_of_a_logit_that_is_not_finite_is_not_finite(value: float, zero_infinity: bool) -> None:
    logits = torch.zeros(2, 5, 3)
    logits[1, 2, 1] = value
    lengths, targets = torch.tensor([5, 5]), [torch.tensor([1, 2])] * 2
    assert ctc_loss(logits, lengths, targets, zero_infinity=zero_infinity).isnan()


def test_additive_margin_softmax_equals_its_definition() -> None:
    torch.manual_seed(0)
    objective = AMSoftmaxLoss(4, 5, s=30.0, m=0.4)
    vectors, speakers = torch.randn(3, 4), torch.tensor([0, 4, 2])
    losses = []
    for vector, speaker in zip(vectors, speakers.tolist(), strict=True):
        cosines = [float(F.cosine_similarity(vector, w, dim=0)) for w in objective.W.detach().T]
        true = math.exp(30.0 * (cosines[speaker] - 0.4))
        others = sum(math.exp(30.0 * c) for j, c in enumerate(cosines) if j != speaker)
        losses.append(-math.log(true / (true + others)))
    assert objective(vectors, speakers).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("speaker", [-1, 5])
def test_a_speaker_outside_the_training_set_is_an_error(speaker: int) -> None:
    with pytest.raises(ValueError, match=r"\b0\b.*\b4\b"):
        AMSoftmaxLoss(4, 5)(torch.randn(1, 4), torch.tensor([speaker]))


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
def test_permutation_invariant_loss_is_the_minimum_over_permutations(speakers: int) -> None:
    torch.manual_seed(speakers)
    lengths = torch.tensor([9, 4, 1])
    logits = torch.randn(3, 9, speakers)
    labels = torch.randint(0, 2, (3, 9, speakers)).float()
    total = 0.0
    best_orders = []
    for b, length in enumerate(lengths.tolist()):
        costs = {
            order: float(
                F.binary_cross_entropy_with_logits(
                    logits[b, :length], labels[b, :length][:, list(order)], reduction="sum"
                )
            )
            / speakers
            for order in itertools.permutations(range(speakers))
        }
        best = min(costs, key=lambda order: costs[order])
        total += costs[best]
        best_orders.append((costs, best))
    loss, orders = permutation_invariant_bce(logits, labels, lengths)
    assert float(loss) == pytest.approx(total / 14, rel=1e-5)
    for order, (costs, best) in zip(orders.tolist(), best_orders, strict=True):
        assert costs[tuple(order)] == pytest.approx(costs[best], rel=1e-6)


def test_padded_frames_have_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 2, requires_grad=True)
    labels = torch.randint(0, 2, (2, 6, 2)).float()
    loss, _ = permutation_invariant_bce(logits, labels, torch.tensor([6, 2]))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1, 2:].any()
    assert logits.grad[1, :2].all()


@pytest.mark.parametrize(
    ("frames", "label_length", "expected"),
    [
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (3, 7, [0, 0, 1, 1, 2, 2, 2]),
        (3, 5, [0, 0, 1, 1, 2]),
        (4, 5, [0, 1, 2, 3, 3]),
        (4, 2, [0, 1]),
        (1, 3, [0, 0, 0]),
        (4, 4, [0, 1, 2, 3]),
    ],
)
def test_features_are_repeated_then_truncated_or_padded_with_the_last_frame(
    frames: int, label_length: int, expected: list[int]
) -> None:
    features = torch.arange(frames)[:, None].float()
    assert match_length(features, label_length)[:, 0].tolist() == expected


@pytest.mark.parametrize("speakers", range(1, permutation_invariant.MOST_ENUMERATED + 1))
def test_enumerated_and_assigned_permutations_agree(speakers: int) -> None:
    costs = torch.rand(50, speakers, speakers, dtype=torch.float64)
    costs[-1] = 0.5
    found = permutation_invariant._enumerated(costs)
    assert torch.equal(found, permutation_invariant._assigned(costs))
    assert found[-1].tolist() == list(range(speakers))


def test_more_speakers_than_are_enumerated_have_their_best_permutation() -> None:
    labels = torch.eye(6)[None]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    _, orders = permutation_invariant_bce(8 * labels[..., order] - 4, labels, torch.tensor([6]))
    assert orders.tolist() == [order.tolist()]
