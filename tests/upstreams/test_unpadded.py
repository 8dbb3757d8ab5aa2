"""SharedEncoder utterances one length at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.unpadded import encode_by_length, sees_batch


def normalised(wavs: list[Tensor]) -> list[Tensor]:
    """Frames of 400 samples, divided by their deviation over time: of one frame there is none."""
    frames = torch.stack(wavs).unfold(1, 400, 400)
    return [frames / frames.std(dim=1, keepdim=True)]


def test_values_that_are_none_make_a_short_waveform_too_short():
    wavs = [torch.rand(900), torch.rand(500), torch.rand(500)]
    with pytest.raises(UserError, match=r"Utterance 1 of the batch has 500 samples, too few for"):
        encode_by_length(wavs, normalised, "model")
    assert encode_by_length(wavs[:1], normalised, "model").lengths == [2]


def test_the_waveform_that_has_no_frame_is_the_one_named():
    def silent_fails(wavs: list[Tensor]) -> list[Tensor]:
        batch = torch.stack(wavs).unfold(1, 400, 400)
        return [batch / batch.abs().amax(dim=(1, 2), keepdim=True)]

    wavs = [torch.rand(900), torch.zeros(900)]
    with pytest.raises(UserError, match=r"Utterance 1 of the batch has 900 samples"):
        encode_by_length(wavs, silent_fails, "model")


def test_values_that_are_none_pass_where_the_length_is_not_why():
    def broken(wavs: list[Tensor]) -> list[Tensor]:
        return [math.nan * frames for frames in normalised(wavs)]

    for encode, samples in ((broken, 900), (broken, 8000)):
        hidden = encode_by_length([torch.rand(samples)], encode, "model")
        assert hidden.states.isnan().all()
    loud = torch.rand(900)
    loud[0] = math.inf
    assert not encode_by_length([loud], normalised, "model").states.isfinite().all()


def test_an_encoder_in_which_utterances_see_each_other_gets_one_at_a_time():
    def over_the_batch(wavs: list[Tensor]) -> list[Tensor]:
        batch = torch.stack(wavs).unfold(1, 400, 400)
        return [batch - batch.mean()]

    assert sees_batch(over_the_batch)
    assert not sees_batch(normalised)
    wavs = [torch.rand(8000), torch.rand(8000), torch.rand(4800)]
    hidden = encode_by_length(wavs, over_the_batch, "model", one_by_one=True)
    assert hidden.lengths == [20, 20, 12]
    for wav, states in zip(wavs, hidden.split(), strict=True):
        assert torch.equal(states, over_the_batch([wav])[0])
