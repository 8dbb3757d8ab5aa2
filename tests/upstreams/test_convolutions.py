"""Convolutions as matrix products equal torch's convolutions; dropout keeps its rate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s3prl_mtl.upstreams.hubert import transformer
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.convolutions import TimeNorm, strided_convolution
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.packing import group_by_length
from s3prl_mtl.upstreams.hubert.transformer import PositionalConvolution


@pytest.mark.parametrize(
    ("kernel", "stride"), [(3, 2), (2, 2), (10, 5), (3, 4), (240, 80), (7, 2), (1, 1), (3, 1)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_strided_convolution_equals_conv1d(kernel: int, stride: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(stride * 20, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    wanted = F.conv1d(rows.t()[None], weight, bias, stride=stride)[0].t()
    found = strided_convolution(rows, weight, bias, stride)
    assert found.shape == (20, 4)
    complete = found[: len(wanted)]
    torch.testing.assert_close(complete, wanted)
    inputs = (rows, weight)
    for one, other in zip(
        torch.autograd.grad(complete.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_norm_over_time_equals_group_norm() -> None:
    torch.manual_seed(0)
    norm = TimeNorm(6, 6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    rows = torch.randn(50, 6, dtype=torch.float64) + 3
    torch.testing.assert_close(norm.over_rows(rows), norm(rows.t()[None])[0].t())


@pytest.mark.parametrize("kernel", [5, 8, 31, 32])
@pytest.mark.parametrize("lengths", [[1], [3], [40, 39, 17, 2, 1]])
def test_the_positional_convolution_in_blocks_equals_conv1d(
    kernel: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = HubertConfig(
        encoder_embed_dim=12, encoder_attention_heads=1, conv_pos=kernel, conv_pos_groups=3
    )
    convolution = PositionalConvolution(config).double()
    torch.nn.init.normal_(convolution.bias)
    x = torch.randn(sum(lengths), 12, dtype=torch.float64)
    groups = group_by_length(lengths, 0.1, x.device)
    results = []
    for fewest in (0, 16):
        monkeypatch.setattr(transformer, "MIN_CHANNELS", fewest)
        output = convolution(x, groups)
        gradients = torch.autograd.grad(output.pow(3).sum(), list(convolution.parameters()))
        results.append([output, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.full((1001, 301), 2.0, requires_grad=True)
    y = dropout(x, probability, training=True)
    # Four standard deviations of a binomial share.
    slack = 4 * (probability * (1 - probability) / x.numel()) ** 0.5
    assert float((y == 0).float().mean()) == pytest.approx(probability, abs=slack + 2**-17)
    assert float(y.detach().double().mean()) == pytest.approx(
        2.0, abs=2 * slack / (1 - probability)
    )
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * 2, y)
    # Neighbours share a draw, but not their fate.
    zeros = (y == 0).double().flatten()
    both = float((zeros[:-1] * zeros[1:]).mean())
    assert both == pytest.approx(probability**2, abs=4 * probability / x.numel() ** 0.5)


def test_dropout_is_the_identity_outside_training() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(dropout(x, 0.0, training=True), x)
