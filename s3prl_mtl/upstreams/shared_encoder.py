"""From waveforms to features: the encoder and the featurizer as a run uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.upstreams import Featurizer, HiddenStates, Upstream


class SharedEncoder:
    """The encoder with its weighted sum of layers, on its device and in its precision.

    Args:
        upstream: the encoder.
        featurizer: the weighted sum of its hidden states.
        device: where both are, and where waveforms go.
        freeze: the encoder is not trained.
        bf16: it runs in bfloat16.
    """

    def __init__(
        self,
        upstream: Upstream,
        featurizer: Featurizer,
        device: torch.device,
        freeze: bool,
        bf16: bool,
    ) -> None:
        self.upstream = upstream
        self.featurizer = featurizer
        self.device = device
        self.freeze = freeze
        self.bf16 = bf16

    def hidden_states(self, wavs: Sequence[Any]) -> HiddenStates:
        """The hidden states of utterances of any tasks, in the precision of the encoder."""
        waveforms = [torch.as_tensor(wav, dtype=torch.float32).to(self.device) for wav in wavs]
        trains_encoder = torch.is_grad_enabled() and not self.freeze
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
            torch.set_grad_enabled(trains_encoder),
        ):
            hidden: HiddenStates = self.upstream(waveforms)
        return hidden

    def weighted(self, hidden: HiddenStates) -> list[Tensor]:
        """The features of each utterance, float32 (frames_i, D)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            # The heads run in float32: CTC and AM-softmax lose too much below it.
            return [feature.float() for feature in self.featurizer(hidden)]

    def features(self, wavs: Sequence[Any]) -> list[Tensor]:
        """The features of utterances of any tasks, float32 (frames_i, D) each."""
        return self.weighted(self.hidden_states(wavs))

    def inputs(self, expert: Any, wavs: Sequence[Any]) -> list[Tensor]:
        """What the `forward` of an expert gets of utterances: features, or all hidden states."""
        if wants_hidden_states(expert):
            return layers(self.hidden_states(wavs))
        return self.features(wavs)

    def set_training(self, training: bool) -> None:
        self.upstream.train(training and not self.freeze)
        self.featurizer.train(training)


def wants_hidden_states(expert: Any) -> bool:
    """Whether the `forward` of an expert gets each layer's hidden states, not their sum."""
    return bool(getattr(expert, "wants_hidden_states", False))


def layers(hidden: HiddenStates) -> list[Tensor]:
    """The hidden states of each utterance, float32 (L, frames_i, D)."""
    return [states.float() for states in hidden.split()]
