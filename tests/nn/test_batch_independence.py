"""The output of a head for an utterance does not depend on the rest of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3prl_mtl.nn import (
    DiarizationHead,
    FrameLevel,
    RNNs,
    UtteranceLevel,
    XVector,
    pad_features,
)

LENGTHS = (40, 17, 93, 16)
WIDTH = 6


@pytest.fixture
def features() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, WIDTH) for length in LENGTHS]


def assert_close(batched: Tensor, single: Tensor) -> None:
    torch.testing.assert_close(batched, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        FrameLevel(WIDTH, 5, hiddens=[4]),
        RNNs(
            WIDTH,
            5,
            module="LSTM",
            bidirection=True,
            dim=[7, 8],
            dropout=[0.0, 0.0],
            layer_norm=[True, False],
            proj=[False, True],
            sample_rate=[1, 1],
            sample_style="drop",
            total_rate=-1,
        ),
        RNNs(
            WIDTH,
            5,
            module="GRU",
            bidirection=True,
            dim=[7, 8],
            dropout=[0.0, 0.0],
            layer_norm=[False, True],
            proj=[True, False],
            sample_rate=[2, 1],
            sample_style="concat",
            total_rate=640,
        ),
    ],
    ids=["frame_level", "lstm", "subsampled_gru"],
)
def test_frame_logits_do_not_depend_on_the_batch(
    head: torch.nn.Module, features: list[Tensor]
) -> None:
    logits, lengths = head(*pad_features(features))
    for index, utterance in enumerate(features):
        single, single_lengths = head(*pad_features([utterance]))
        length = int(single_lengths[0])
        assert int(lengths[index]) == length
        assert_close(logits[index, :length], single[0, :length])


def test_utterance_logits_do_not_depend_on_the_batch(features: list[Tensor]) -> None:
    head = UtteranceLevel(WIDTH, 5)
    logits = head(*pad_features(features))
    for index, utterance in enumerate(features):
        assert_close(logits[index], head(*pad_features([utterance]))[0])


def test_mean_pooling_ignores_padding(features: list[Tensor]) -> None:
    head = UtteranceLevel(WIDTH, 5)
    padded, lengths = pad_features(features)
    expected = head(padded, lengths)
    padded[1, LENGTHS[1] :] = torch.nan
    assert_close(head(padded, lengths), expected)


def test_diarization_logits_do_not_depend_on_the_batch(features: list[Tensor]) -> None:
    head = DiarizationHead(WIDTH, 3, hidden_size=8)
    logits = head(pad_features(features)[0])
    for index, utterance in enumerate(features):
        assert_close(logits[index, : len(utterance)], head(utterance[None])[0])


def test_xvectors_do_not_depend_on_the_batch_without_padding_frames(
    features: list[Tensor],
) -> None:
    head = XVector(WIDTH, agg_dim=9)
    padded, lengths = pad_features(features)
    for call in (head, head.embed):
        batched = call(padded, lengths, pool_padding_frame=False)
        for index, utterance in enumerate(features):
            assert_close(batched[index], call(*pad_features([utterance]), False)[0])


def test_superb_pooling_adds_one_padded_frame_to_shorter_utterances_only(
    features: list[Tensor],
) -> None:
    head = XVector(WIDTH, agg_dim=9)
    batched = head.embed(*pad_features(features))
    for index, utterance in enumerate(features):
        if len(utterance) < max(LENGTHS):
            utterance = torch.cat([utterance, torch.zeros(1, WIDTH)])
        assert_close(batched[index], head.embed(*pad_features([utterance]))[0])
