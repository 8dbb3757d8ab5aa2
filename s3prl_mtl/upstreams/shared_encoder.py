"""The encoder and the weighted sum of its layers, shared by the tasks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.nn.transfer import to_device_together
from s3prl_mtl.upstreams import Featurizer, HiddenStates, Upstream


class SharedEncoder:
    """Compute features of waveforms for the experts of all tasks.

    Args:
        upstream: the encoder.
        featurizer: the weighted sum of its hidden states.
        device: of both; waveforms are moved there.
        freeze: do not train the encoder.
        bf16: run the encoder under autocast to bfloat16.
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
        """Encode waveforms ``(samples_i,)``; hidden states are in the encoder's precision."""
        waveforms = to_device_together(
            [torch.as_tensor(wav, dtype=torch.float32) for wav in wavs], self.device
        )
        trains_encoder = torch.is_grad_enabled() and not self.freeze
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
            torch.set_grad_enabled(trains_encoder),
        ):
            hidden: HiddenStates = self.upstream(waveforms)
        return hidden

    def weighted(self, hidden: HiddenStates) -> list[Tensor]:
        """The weighted sum of the layers of each utterance, float32 ``(frames_i, D)``."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            # Heads run in float32: CTC and AM-softmax are inaccurate in bfloat16.
            return [feature.float() for feature in self.featurizer(hidden)]

    def features(self, wavs: Sequence[Any]) -> list[Tensor]:
        """The features of waveforms, float32 ``(frames_i, D)`` each."""
        return self.weighted(self.hidden_states(wavs))

    def inputs(self, expert: Any, wavs: Sequence[Any]) -> list[Tensor]:
        """The input of an expert's `forward`: features, or the hidden states of all layers."""
        return self.inputs_from(expert, self.hidden_states(wavs))

    def inputs_from(self, expert: Any, hidden: HiddenStates) -> list[Tensor]:
        """:meth:`inputs` of waveforms that are encoded already."""
        return layers(hidden) if wants_hidden_states(expert) else self.weighted(hidden)

    def set_training(self, training: bool) -> None:
        """Switch between training and evaluation; a frozen encoder stays in evaluation mode."""
        self.upstream.train(training and not self.freeze)
        self.featurizer.train(training)


def wants_hidden_states(expert: Any) -> bool:
    """Whether an expert takes the hidden states of all layers instead of their weighted sum."""
    return bool(getattr(expert, "wants_hidden_states", False))


def layers(hidden: HiddenStates) -> list[Tensor]:
    """The hidden states of each utterance, float32 ``(L, frames_i, D)``."""
    return [states.float() for states in hidden.split()]
