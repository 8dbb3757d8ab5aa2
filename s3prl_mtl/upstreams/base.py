"""The interface of an encoder: waveforms in, packed hidden states out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s3prl_mtl.errors import UserError


@dataclass(frozen=True)
class Mask:
    """Masked frames and channels of an utterance, before the first Transformer layer.

    Args:
        frames: bool (T,), on the CPU; these frames become the encoder's mask embedding.
        channels: bool (D,), on the CPU; these channels become 0 in all frames. None: no channel.
    """

    frames: Tensor
    channels: Tensor | None = None


@dataclass(frozen=True)
class MaskedUtterance:
    """The encoding of an utterance of which a task has masked a part.

    Args:
        states: the last hidden state, float32 (T, D).
        mask: as the task drew it.
        penalty: the mean square of the convolutional features, a scalar.
    """

    states: Tensor
    mask: Mask
    penalty: Tensor


class HiddenStates:
    """Hidden states of several utterances, one after the other without padding.

    Args:
        states: L hidden states ``(sum T, D)``, or one tensor ``(L, sum T, D)``; index 0 is the
            input of the first layer. Rows behind the last utterance are ignored.
        lengths: frames of each utterance, in the order of the rows.
        order: the waveform of each utterance of the rows; None for the order of the waveforms.
        squares: mean square of the convolutional features of each row, ``(rows,)``; None unless the
            encoder was given masks.

    Attributes:
        layers: the hidden states as they were given, utterances in the order of the rows.
    """

    def __init__(
        self,
        states: Tensor | Sequence[Tensor],
        lengths: Sequence[int],
        order: Sequence[int] | None = None,
        squares: Tensor | None = None,
    ) -> None:
        self.layers = list(states)
        self._row_lengths = list(lengths)
        self._order = list(order) if order is not None else list(range(len(lengths)))
        self._squares = squares

    @property
    def lengths(self) -> list[int]:
        """Frames of each utterance, in the order of the waveforms."""
        return self._in_order(self._row_lengths)

    @property
    def states(self) -> Tensor:
        """``(L, sum T, D)``, utterances in the order of the waveforms; a copy."""
        return torch.cat(self.split(), dim=1)

    def split(self) -> list[Tensor]:
        """``(L, T_i, D)`` of each utterance, in the order of the waveforms."""
        return self._split(torch.stack(self.layers), dim=1)

    def layer(self, index: int) -> list[Tensor]:
        """Hidden state ``index`` (negative: from the end) of each utterance, ``(T_i, D)``."""
        return self.by_utterance(self.layers[index])

    def penalties(self) -> list[Tensor]:
        """The mean square of the convolutional features of each utterance, scalars.

        Raises:
            ValueError: the encoder was not given masks, and did not compute them.
        """
        if self._squares is None:
            raise ValueError("The penalty is computed only for batches with masks.")
        return [squares.mean() for squares in self.by_utterance(self._squares)]

    def by_utterance(self, rows: Tensor) -> list[Tensor]:
        """Rows as in `layers` -> a view of each utterance, in the order of the waveforms."""
        return self._split(rows, dim=0)

    def _split(self, rows: Tensor, dim: int) -> list[Tensor]:
        unused = rows.shape[dim] - sum(self._row_lengths)
        return self._in_order(rows.split([*self._row_lengths, unused], dim)[:-1])

    def _in_order(self, entries: Sequence[Any]) -> list[Any]:
        placed = [entries[0]] * len(entries)
        for index, entry in zip(self._order, entries, strict=True):
            placed[index] = entry
        return placed


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
    can_mask: ClassVar[bool] = False
    """Whether `forward` takes masks; such a class defines `num_frames`, too."""

    @property
    def pretraining_settings(self) -> Mapping[str, Any]:
        """Settings of the pre-training, under fairseq's names; empty if they are not known."""
        return {}

    @property
    def pretraining_classes(self) -> list[list[str]] | None:
        """The classes of each label set of the pre-training, in the order of their embeddings; None
        if they are not known."""
        return None

    def num_frames(self, samples: int) -> int:
        """Frames of an utterance of so many samples."""
        raise NotImplementedError(f"{type(self).__name__} cannot mask frames.")

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

    def parameter_layers(self) -> dict[str, int] | None:
        """The layer of each parameter: 0 is the convolutional front end, 1 the first Transformer
        layer with its inputs, such as positions. None if the upstream does not tell.
        """
        return None

    def checkpoint_activations(self) -> None:
        """Compute the activations of layers again in the backward pass instead of keeping them.

        Raises:
            UserError: this upstream cannot.
        """
        raise UserError(
            f"{type(self).__name__} cannot compute its activations again.",
            where="--checkpoint_activations",
            fix="Leave it out, or use a smaller batch.",
            code="not-supported",
        )

    @abstractmethod
    def forward(self, wavs: list[Tensor]) -> HiddenStates:
        """Encode waveforms, each ``(samples_i,)`` in [-1, 1] at 16 kHz.

        The representation of an utterance does not depend on the others of its batch.

        A class with `can_mask` has a second argument, ``masks: Sequence[Mask | None] | None``, with
        an entry for each waveform. Given masks, it also computes `HiddenStates.penalties`.

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
