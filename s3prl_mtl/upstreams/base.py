"""The interface of an encoder: waveforms in, packed hidden states out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class HiddenStates:
    """Hidden states of several utterances, one after the other without padding.

    Args:
        states: ``(L, sum(lengths), D)``: L hidden states, index 0 the input of the first layer.
        lengths: frames of each utterance, in the order of the waveforms.
    """

    states: Tensor
    lengths: list[int]

    def split(self) -> list[Tensor]:
        """Views ``(L, T_i, D)``, one for each utterance."""
        return list(self.states.split(self.lengths, dim=1))

    def layer(self, index: int) -> list[Tensor]:
        """Hidden state ``index`` (negative: from the end) of each utterance, ``(T_i, D)``."""
        return list(self.states[index].split(self.lengths, dim=0))


class Upstream(nn.Module, ABC):
    """An encoder of speech: a list of waveforms in, :class:`HiddenStates` out.

    Attributes:
        hidden_size: width D of every hidden state.
        num_hidden_states: number L of hidden states (13 for HuBERT Base).
        downsample_rate: samples from one frame to the next (320, which is 20 ms).
    """

    hidden_size: int
    num_hidden_states: int
    downsample_rate: int

    @property
    def checkpoint_info(self) -> dict[str, Any] | None:
        """Plain values that rebuild this upstream, without its parameters, from a run checkpoint.

        None if it can only be loaded by name. See
        :func:`s3prl_mtl.upstreams.rebuild_upstream`.
        """
        return None

    def s3prl_state_dict(self) -> dict[str, Tensor]:
        """The state dict for run checkpoints, under the names of s3prl's expert.

        s3prl's experts keep a wrapped model, such as fairseq's, in an attribute `model`.
        """
        return {f"model.{name}": value for name, value in self.state_dict().items()}

    @abstractmethod
    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Encode waveforms, each ``(samples_i,)`` in [-1, 1] at 16 kHz.

        The representation of an utterance does not depend on the others of its batch.

        Raises:
            UserError: an utterance is too short for one frame; the place holds its index.
        """


def check_waveforms(wavs: list[Tensor]) -> None:
    """Raise ``ValueError`` unless there is at least one waveform and all are 1-D and floating."""
    if not wavs:
        raise ValueError("An upstream needs at least one waveform, got an empty list.")
    for index, wav in enumerate(wavs):
        if wav.dim() != 1 or not torch.is_floating_point(wav):
            raise ValueError(
                f"Waveform {index} must be a 1-D floating point tensor, "
                f"got shape {tuple(wav.shape)} of {wav.dtype}."
            )
