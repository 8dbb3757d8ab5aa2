"""Convolutions as matrix products equal torch's convolutions; dropout keeps its rate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s3prl_mtl.upstreams.hubert import attention, convolutions, positional
from s3prl_mtl.upstreams.hubert.attention import attend_in_groups
from s3prl_mtl.upstreams.hubert.config import HubertConfig
from s3prl_mtl.upstreams.hubert.convolutions import (
    ConvolutionalFrontEnd,
    statistics_by_slot,
    statistics_by_utterance,
    strided_convolution,
)
from s3prl_mtl.upstreams.hubert.dropout import dropout
from s3prl_mtl.upstreams.hubert.encoder import Hubert
from s3prl_mtl.upstreams.hubert.positional import (
    PositionalConvolution,
    convolve_in_blocks,
    convolve_signal,
)
from s3prl_mtl.upstreams.hubert.segments import Segments, rounded_length


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


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_norm_over_time_needs_no_pass_over_the_output(offset: float) -> None:
    """The first block against convolution, GroupNorm and GELU of each utterance alone."""
    torch.manual_seed(0)
    front_end = ConvolutionalFrontEnd(HubertConfig(conv_bias=True))
    conv, norm, gelu = front_end._parts(0)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    wavs = [0.05 * torch.randn(n) + offset for n in (400, 6411, 1300, 320 * 7)]
    slots = [2, 21, 5, 7]
    found = front_end._first_block(wavs, slots, torch.float32).split([n * 64 for n in slots])
    for wav, rows in zip(wavs, found, strict=True):
        wanted = gelu(norm(conv.double()(wav.double()[None, None]).float()))[0].t()
        conv.float()
        torch.testing.assert_close(rows[: len(wanted)], wanted, atol=2e-5, rtol=0)


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    front_end = ConvolutionalFrontEnd(HubertConfig())
    wavs = [0.1 * torch.randn(n) for n in (4000, 3000)]
    gradients = []
    for recompute in (False, True):
        front_end.recompute = recompute
        front_end.zero_grad()
        front_end(wavs, torch.float32).square().sum().backward()
        gradients.append([p.grad for p in front_end.parameters()])
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


@pytest.mark.parametrize("kernel", [5, 8, 31, 32])
@pytest.mark.parametrize("lengths", [[1], [3], [40, 39, 17, 2, 1]])
def test_the_positional_convolution_equals_conv1d(
    kernel: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forms of a CPU and of a GPU against each utterance alone."""
    torch.manual_seed(0)
    config = HubertConfig(
        encoder_embed_dim=12, encoder_attention_heads=1, conv_pos=kernel, conv_pos_groups=3
    )
    convolution = PositionalConvolution(config).double()
    torch.nn.init.normal_(convolution.bias)
    x = torch.randn(sum(lengths), 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, *convolution.parameters()]
    segments = Segments(lengths, x.device)
    weight = convolution.normalised_weight()
    alone = [
        F.conv1d(rows.t()[None], weight, convolution.bias, padding=kernel // 2, groups=3)[0].t()
        for rows in x.split(lengths)
    ]
    wanted = torch.cat([y[:length] for y, length in zip(alone, lengths, strict=True)])
    truth = [wanted, *torch.autograd.grad(wanted.pow(3).sum(), inputs)]
    for convolve, gpu in (
        (convolve_in_blocks, False),
        (convolve_in_blocks, True),
        (convolve_signal, True),
    ):
        monkeypatch.setattr(positional, "on_gpu", lambda _, gpu=gpu: gpu)
        found = convolution.over(x, segments, convolve)
        results = [found, *torch.autograd.grad(found.pow(3).sum(), inputs)]
        torch.testing.assert_close(results, truth)


def test_few_lengths_of_the_signal_occur() -> None:
    lengths = {rounded_length(n, 16) for n in range(1000, 16_000)}
    assert len(lengths) <= 65
    assert all(n <= rounded_length(n, 16) <= 1.07 * n for n in range(16, 16_000))


def test_attention_drops_its_share_of_weights() -> None:
    """With equal weights and values of 1, an output is the share of kept weights over 1 - p."""
    torch.manual_seed(0)
    lengths = [300, 290, 50]
    packed = torch.zeros(3, sum(lengths), 4, 8)
    packed[2] = 1
    out = attend_in_groups(*packed, Segments(lengths, packed.device), 0.1)[..., 0].double()
    for rows, length in zip(out.split(lengths), lengths, strict=True):
        kept = rows * 0.9
        count = kept.numel() * length
        error = (0.1 * 0.9 / count) ** 0.5
        assert abs(kept.mean() - 0.9) < 5 * error
        # A binomial number of weights is kept in each row.
        assert kept.var() == pytest.approx(0.1 * 0.9 / length, rel=0.2)


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_flash_attention_is_given_a_probability_that_its_8_bits_can_express(
    probability: float,
) -> None:
    rounded = attention.rounded_probability(probability)
    assert rounded == pytest.approx(probability, abs=1 / 512)
    kept = sum(bits <= int((1 - rounded) * 255) for bits in range(256)) / 256
    assert kept == pytest.approx(1 - rounded, abs=1e-9)


@pytest.mark.parametrize("width", [64, 12])
@pytest.mark.parametrize("flash", [True, False])
def test_the_attention_kernels_of_a_gpu_take_the_arguments(
    width: int, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes only, on torch's meta device: the operators are not public and may change."""
    monkeypatch.setattr(attention, "has_flash_attention", lambda _: flash)
    dtype = torch.bfloat16 if flash else torch.float32
    lengths = [5, 3]
    rows = torch.empty(3, 8, 4, width, dtype=dtype, device="meta", requires_grad=True)
    out = attention.attend_by_offsets(*rows, Segments(lengths, rows.device), 0.1)
    assert out.shape == (8, 4, width)
    if flash:  # torch cannot do the backward pass of the other one on this device.
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["default", "layer_norm"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_forms_of_a_gpu_give_the_numbers_of_a_cpu(
    dtype: torch.dtype, mode: str, pre_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole encoder on a CPU; only the attention kernel itself needs a GPU."""
    config = HubertConfig(
        extractor_mode=mode,
        encoder_layers=2,
        encoder_embed_dim=24,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=2,
        layer_norm_first=pre_norm,
        conv_pos_groups=4,
        conv_feature_layers=((16, 10, 5), (16, 3, 2), (16, 2, 2)),
    )
    torch.manual_seed(0)
    model = Hubert(config).eval()
    wavs = [0.1 * torch.randn(n) for n in (40_000, 700, 2500, 31_000)]
    monkeypatch.setattr(attention, "attend_by_offsets", attend_in_groups)
    results = []
    for gpu in (False, True):
        for module in (attention, convolutions, positional):
            monkeypatch.setattr(module, "on_gpu", lambda _, gpu=gpu: gpu)
        model.zero_grad()
        model.feature_extractor.recompute = gpu
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = model(wavs)
        assert all(len(rows) == rounded_length(len(rows), 32) for rows in hidden.layers if gpu)
        states = hidden.states.float()
        (states * torch.arange(states.numel()).cos().view_as(states)).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append({"states": states.detach(), **gradients})
    largest = max(float(value.norm()) for value in results[0].values() if value is not None)
    for name, one in results[0].items():
        other = results[1][name]
        if one is None or other is None:
            assert one is other, name
            continue
        # Keys' biases have no effect: their gradients are rounding errors.
        error = float((one - other).norm() / (one.norm() + 1e-4 * largest))
        assert error < (1e-4 if dtype == torch.float32 else 0.1), name


def test_statistics_of_slots_equal_those_of_utterances() -> None:
    torch.manual_seed(0)
    slots, counts, in_slot = [3, 1, 5], [150, 64, 257], 64
    windows = torch.randn(sum(slots) * in_slot + 20).add_(3).unfold(0, 10, 1)[: 9 * in_slot]
    torch.testing.assert_close(
        statistics_by_slot(windows, slots, in_slot, counts),
        statistics_by_utterance(windows, slots, in_slot, counts),
    )


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


def test_a_broken_utterance_does_not_change_the_statistics_of_others() -> None:
    torch.manual_seed(0)
    slots, counts, in_slot = [2, 3], [100, 190], 64
    windows = torch.randn(5 * in_slot, 10)
    wanted = statistics_by_slot(windows.clone(), slots, in_slot, counts)
    windows[3] = torch.nan
    centred, covariance = statistics_by_slot(windows, slots, in_slot, counts)
    assert covariance[0].isnan().all()
    torch.testing.assert_close(covariance[1], wanted[1][1])
    torch.testing.assert_close(centred[2 * in_slot :], wanted[0][2 * in_slot :])
