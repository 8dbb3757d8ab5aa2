"""Options of the heads: names, shapes, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from s3prl_mtl.nn import (
    FrameLevel,
    RNNs,
    UtteranceLevel,
    XVector,
    frame_mask,
    head_from_settings,
    pad_features,
)
from s3prl_mtl.nn.xvector import TDNN
from tests.mistakes import user_error

RNN_SETTINGS: dict[str, Any] = {
    "module": "GRU",
    "bidirection": False,
    "dim": [4, 3],
    "dropout": [0.0, 0.1],
    "layer_norm": [True, False],
    "proj": [False, True],
    "sample_rate": [1, 2],
    "sample_style": "concat",
    "total_rate": -1,
}


def test_frame_mask_marks_the_frames_of_each_utterance() -> None:
    mask = frame_mask(torch.tensor([1, 3, 0]), 3)
    assert mask.tolist() == [[True, False, False], [True, True, True], [False, False, False]]


def test_padding_an_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError):
        pad_features([])


def test_recurrent_parameters_are_named_as_in_s3prl() -> None:
    head = head_from_settings(5, 2, {"select": "RNNs", "RNNs": RNN_SETTINGS})
    layer = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    expected = {f"rnns.{n}.layer.{name}" for n in (0, 1) for name in layer}
    expected |= {"rnns.0.ln.weight", "rnns.0.ln.bias", "rnns.1.pj.weight", "rnns.1.pj.bias"}
    expected |= {"linear.weight", "linear.bias"}
    assert set(head.state_dict()) == expected


def test_a_recurrent_layer_is_norm_then_subsampling_then_projection() -> None:
    torch.manual_seed(0)
    head = RNNs(5, 2, **RNN_SETTINGS).eval()
    features = torch.randn(1, 7, 5)
    logits, lengths = head(features, torch.tensor([7]))
    first, second = head.rnns
    hidden = first.ln(first.layer(features)[0])
    hidden = torch.tanh(second.pj(second.layer(hidden)[0][:, ::2]))
    torch.testing.assert_close(logits, head.linear(hidden))
    assert lengths.tolist() == [3]


@pytest.mark.parametrize(("total_rate", "rate"), [(-1, 1), (320, 1), (640, 2), (1000, 3)])
def test_concatenation_brings_the_input_to_the_total_rate(total_rate: int, rate: int) -> None:
    settings = {**RNN_SETTINGS, "total_rate": total_rate, "sample_rate": [1, 1]}
    head = RNNs(5, 2, **settings).eval()
    assert head.rnns[0].layer.input_size == 5 * rate
    features = torch.randn(2, 10, 5)
    logits, lengths = head(features, torch.tensor([10, 7]))
    assert lengths.tolist() == [10 // rate, 7 // rate]
    beside = torch.cat([features[:1, n::rate][:, : 10 // rate] for n in range(rate)], dim=2)
    direct = RNNs(5 * rate, 2, **{**settings, "total_rate": -1}).eval()
    direct.load_state_dict(head.state_dict())
    torch.testing.assert_close(logits[:1], direct(beside, torch.tensor([10 // rate]))[0])


def test_dropping_keeps_the_width_of_the_input() -> None:
    settings = {**RNN_SETTINGS, "total_rate": 640, "sample_style": "drop", "sample_rate": [1, 1]}
    head = RNNs(5, 2, **settings).eval()
    features = torch.randn(1, 9, 5)
    logits, lengths = head(features, torch.tensor([9]))
    direct = RNNs(5, 2, **{**settings, "total_rate": -1}).eval()
    direct.load_state_dict(head.state_dict())
    torch.testing.assert_close(logits, direct(features[:, :8:2], torch.tensor([4]))[0])
    assert lengths.tolist() == [4]


def test_subsampling_that_leaves_no_frame_is_an_error() -> None:
    head = RNNs(5, 2, **{**RNN_SETTINGS, "total_rate": 1280})
    with pytest.raises(ValueError):
        head(torch.randn(2, 8, 5), torch.tensor([8, 3]))


@pytest.mark.parametrize(
    ("settings", "code", "where", "fix"),
    [
        ({}, "unknown-name", r"modelrc\.select", "RNNs"),
        ({"select": "RNN"}, "unknown-name", r"modelrc\.select", "'RNNs'"),
        (
            {"select": "UtteranceLevel", "UtteranceLevel": {"poolin": "x"}},
            *("unknown-key", r"UtteranceLevel\.poolin", "'pooling'"),
        ),
        (
            {"select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MaxPooling"}},
            *("unknown-name", r"UtteranceLevel\.pooling", "MeanPooling"),
        ),
        (
            {"select": "RNNs", "RNNs": {"dim": [3]}},
            *("missing-option", r"modelrc\.RNNs", "module, bidirection"),
        ),
        (
            {"select": "RNNs", "RNNs": {**RNN_SETTINGS, "dim": [3]}},
            *("invalid-value", "dim: 1, dropout: 2", None),
        ),
        (
            {"select": "RNNs", "RNNs": {**RNN_SETTINGS, "module": "LTSM"}},
            *("unknown-name", r"RNNs\.module", "'LSTM'"),
        ),
        (
            {"select": "RNNs", "RNNs": {**RNN_SETTINGS, "sample_style": "x"}},
            *("unknown-name", r"RNNs\.sample_style", "concat"),
        ),
        (
            {"select": "FrameLevel", "FrameLevel": {"activation": "Relu"}},
            *("unknown-name", r"FrameLevel\.activation", "'ReLU'"),
        ),
    ],
)
def test_invalid_settings_are_user_errors(
    settings: dict[str, Any], code: str, where: str, fix: str | None
) -> None:
    with user_error(code, where, fix):
        head_from_settings(5, 2, settings)


def test_settings_of_other_heads_are_ignored() -> None:
    settings = {"select": "FrameLevel", "FrameLevel": None, "RNNs": {"x": 1}, "project_dim": 3}
    head = head_from_settings(5, 2, settings)
    assert isinstance(head, FrameLevel)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}


def test_hidden_layers_precede_the_linear_layer() -> None:
    head = FrameLevel(5, 2, hiddens=[4], activation="Tanh")
    features = torch.randn(2, 3, 5)
    expected = head.linear(torch.tanh(head.hiddens[0](features)))
    torch.testing.assert_close(head(features, torch.tensor([3, 3]))[0], expected)


def test_utterance_level_is_the_mean_then_linear() -> None:
    head = UtteranceLevel(5, 2)
    utterance = torch.randn(7, 5)
    expected = head.post_net.linear(utterance.mean(dim=0))
    torch.testing.assert_close(head(*pad_features([utterance]))[0], expected)


@pytest.mark.parametrize(("context", "dilation"), [(5, 1), (3, 2), (3, 3), (1, 1)])
def test_a_time_delay_layer_is_linear_over_its_frames_side_by_side(
    context: int, dilation: int
) -> None:
    layer = TDNN(4, 6, context, dilation)
    frames = torch.randn(1, 20, 4)
    outputs = layer(frames)
    assert outputs.shape[1] == 20 - (context - 1) * dilation
    for start in range(outputs.shape[1]):
        seen = frames[0, start : start + (context - 1) * dilation + 1 : dilation].reshape(-1)
        torch.testing.assert_close(outputs[0, start], F.relu(layer.kernel(seen)))


def test_gradients_stay_finite_where_a_channel_never_fires() -> None:
    head = XVector(4, agg_dim=5)
    with torch.no_grad():
        head.framelevel_feature_extractor.module[4].kernel.bias.fill_(-100.0)
    features = torch.randn(1, 30, 4, requires_grad=True)
    head(features, torch.tensor([30])).sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_an_utterance_too_short_for_an_xvector_is_an_error() -> None:
    head = XVector(4, agg_dim=5)
    assert head.min_frames == 16
    assert torch.isfinite(head(*pad_features([torch.randn(16, 4)]))).all()
    with pytest.raises(ValueError, match=r"\b16\b.*\b15\b"):
        head(*pad_features([torch.randn(15, 4), torch.randn(40, 4)]))


def test_batch_norm_and_dropout_of_the_xvector_have_s3prls_names() -> None:
    head = XVector(4, agg_dim=5, dropout_p=0.1, batch_norm=True)
    names = set(head.state_dict())
    assert "framelevel_feature_extractor.module.4.bn.running_mean" in names
    assert head(torch.randn(2, 20, 4), torch.tensor([20, 18])).shape == (2, 4)
