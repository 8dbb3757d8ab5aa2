"""An encoder that needs no weights: what it gives of an utterance follows from the waveform."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.upstreams import Featurizer, HiddenStates, Upstream
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

WIDTH = 24
LAYERS = 3
FRAME_SAMPLES = 320


class PseudoUpstream(Upstream):
    """Hidden states of pseudo-random numbers, normally distributed.

    An utterance has the same ones wherever and with whatever others it is read. They require a
    gradient where gradients are enabled.
    """

    hidden_size = WIDTH
    num_hidden_states = LAYERS
    downsample_rate = FRAME_SAMPLES

    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """(samples_i,) each -> states (LAYERS, frames, WIDTH), one utterance after the other."""
        states = [_noise_of(wav) for wav in wavs]
        packed = torch.cat(states, dim=1).requires_grad_(torch.is_grad_enabled())
        return HiddenStates(packed, [state.shape[1] for state in states])


def pseudo_encoding() -> SharedEncoder:
    """The pseudo-random encoder as a run has one; its last hidden state is the features."""
    upstream = PseudoUpstream()
    featurizer = Featurizer(upstream, "last_hidden_state")
    return SharedEncoder(upstream, featurizer, torch.device("cpu"), freeze=False, bf16=False)


def _noise_of(wav: Tensor) -> Tensor:
    frames = max(1, (len(wav) - MINIMUM_SAMPLES) // FRAME_SAMPLES + 1)
    digest = hashlib.blake2b(wav.contiguous().numpy().tobytes(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(LAYERS, frames, WIDTH, generator=generator)
