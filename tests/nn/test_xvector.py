"""Statistics pooling against torch's mean and standard deviation of each utterance."""

from __future__ import annotations

import torch

from s3prl_mtl.nn import statistics_pooling


def test_mean_and_deviation_are_those_of_each_utterance_alone() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([300, 2, 57])
    # Far from 0: the difference of the means of squares would have no correct digit.
    features = (3000 + torch.randn(3, 300, 4)).requires_grad_()
    pooled = statistics_pooling(features, lengths)
    weights = torch.randn(3, 8)
    (pooled * weights).sum().backward()
    for b, length in enumerate(lengths.tolist()):
        alone = features.detach()[b, :length].double().requires_grad_()
        expected = torch.cat([alone.mean(dim=0), alone.std(dim=0)])
        torch.testing.assert_close(pooled[b], expected.float(), rtol=1e-6, atol=0)
        (expected * weights[b]).sum().backward()
        gradient = features.grad[b]
        torch.testing.assert_close(gradient[:length], alone.grad.float(), rtol=1e-3, atol=1e-4)
        assert not gradient[length:].any()


def test_a_channel_without_deviation_has_no_gradient_of_it() -> None:
    features = torch.zeros(2, 20, 3, requires_grad=True)
    statistics_pooling(features, torch.tensor([20, 16]))[:, 3:].sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 20, 3))
