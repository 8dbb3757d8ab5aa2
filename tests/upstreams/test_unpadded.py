"""Encode utterances of equal length together, so that nothing is padded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3prl_mtl.upstreams.zoo.unpadded import depends_on_batch, encode_by_length
from tests.mistakes import user_error


def normalised(wavs: list[Tensor]) -> list[Tensor]:
    """Frames of 400 samples, divided by their deviation over time, undefined for one frame."""
    frames = torch.stack(wavs).unfold(1, 400, 400)
    return [frames / frames.std(dim=1, keepdim=True)]


def test_a_short_waveform_with_undefined_values_is_too_short():
    wavs = [torch.rand(900), torch.rand(500), torch.rand(500)]
    with user_error("audio-too-short", where=r"\b1\b.*\b3\b.*\b500\b"):
        encode_by_length(wavs, normalised, "model")
    assert encode_by_length(wavs[:1], normalised, "model").lengths == [2]


def test_the_error_names_the_waveform_that_is_too_short():
    def silent_fails(wavs: list[Tensor]) -> list[Tensor]:
        batch = torch.stack(wavs).unfold(1, 400, 400)
        return [batch / batch.abs().amax(dim=(1, 2), keepdim=True)]

    wavs = [torch.rand(900), torch.zeros(900)]
    with user_error("audio-too-short", where=r"\b1\b.*\b2\b.*\b900\b"):
        encode_by_length(wavs, silent_fails, "model")


def test_undefined_values_that_do_not_depend_on_the_length_pass():
    def broken(wavs: list[Tensor]) -> list[Tensor]:
        return [math.nan * frames for frames in normalised(wavs)]

    for encode, samples in ((broken, 900), (broken, 8000)):
        hidden = encode_by_length([torch.rand(samples)], encode, "model")
        assert hidden.states.isnan().all()
    loud = torch.rand(900)
    loud[0] = math.inf
    assert not encode_by_length([loud], normalised, "model").states.isfinite().all()


def test_an_encoder_that_depends_on_the_batch_gets_one_utterance_at_a_time():
    def over_the_batch(wavs: list[Tensor]) -> list[Tensor]:
        batch = torch.stack(wavs).unfold(1, 400, 400)
        return [batch - batch.mean()]

    assert depends_on_batch(over_the_batch)
    assert not depends_on_batch(normalised)
    wavs = [torch.rand(8000), torch.rand(8000), torch.rand(4800)]
    hidden = encode_by_length(wavs, over_the_batch, "model", one_by_one=True)
    assert hidden.lengths == [20, 20, 12]
    for wav, states in zip(wavs, hidden.split(), strict=True):
        assert torch.equal(states, over_the_batch([wav])[0])
