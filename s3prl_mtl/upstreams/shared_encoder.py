"""The encoder and the weighted sum of its layers, shared by the tasks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.nn.transfer import to_device_together
from s3prl_mtl.upstreams import Featurizer, HiddenStates, Mask, MaskedUtterance, Upstream

InputKind = Literal["features", "hidden_states", "masked"]
Masks = Sequence[Mask | None]
"""The mask of each utterance."""


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

    def masks(
        self, expert: Any, split: str, wavs: Sequence[Any], others: Sequence[Any]
    ) -> list[Mask | None]:
        """The masks that an expert draws for a batch; None for each waveform if it draws none.

        Raises:
            UserError: they do not fit the batch.
        """
        if not draws_masks(expert):
            return [None] * len(wavs)
        frames = [self.upstream.num_frames(len(wav)) for wav in wavs]
        masks = list(expert.masks(split, frames, *others))
        width = self.upstream.hidden_size
        sizes = [(len(mask.frames), _width(mask, width)) for mask in masks]
        if sizes != [(count, width) for count in frames]:
            raise UserError(
                f"`masks` returned masks of (frames, channels) {sizes} for utterances of {frames} "
                f"frames and {width} channels.",
                where=f"`masks` of {type(expert).__module__}.{type(expert).__qualname__}",
                fix="Return a Mask for each utterance.",
                code="expert-invalid",
            )
        return masks

    def hidden_states(self, wavs: Sequence[Any], masks: Masks = ()) -> HiddenStates:
        """Encode waveforms ``(samples_i,)``; hidden states are in the encoder's precision.

        Args:
            wavs: the waveforms.
            masks: of each waveform; empty if none is masked.
        """
        waveforms = to_device_together(
            [torch.as_tensor(wav, dtype=torch.float32) for wav in wavs], self.device
        )
        trains_encoder = torch.is_grad_enabled() and not self.freeze
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
            torch.set_grad_enabled(trains_encoder),
        ):
            hidden: HiddenStates
            if any(mask is not None for mask in masks):
                hidden = self.upstream(waveforms, masks)
            else:
                hidden = self.upstream(waveforms)
        return hidden

    def weighted(self, hidden: HiddenStates) -> list[Tensor]:
        """The weighted sum of the layers of each utterance, float32 ``(frames_i, D)``."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            # Heads run in float32: CTC and AM-softmax are inaccurate in bfloat16.
            return [feature.float() for feature in self.featurizer(hidden)]

    def features(self, wavs: Sequence[Any]) -> list[Tensor]:
        """The features of waveforms, float32 ``(frames_i, D)`` each."""
        return self.weighted(self.hidden_states(wavs))

    def inputs(
        self, expert: Any, split: str, wavs: Sequence[Any], others: Sequence[Any]
    ) -> list[Any]:
        """The input of an expert's `forward` for a batch; see :meth:`inputs_from`."""
        masks = self.masks(expert, split, wavs, others)
        return self.inputs_from(expert, self.hidden_states(wavs, masks), masks)

    def inputs_from(self, expert: Any, hidden: HiddenStates, masks: Masks) -> list[Any]:
        """:meth:`inputs` of waveforms that are encoded already, with these masks."""
        return self.inputs_of_kind(input_kind(expert), hidden, masks)

    def inputs_of_kind(self, kind: InputKind, hidden: HiddenStates, masks: Masks) -> list[Any]:
        """The inputs of experts of a kind for each utterance: features ``(frames_i, D)``, hidden
        states of all layers ``(L, frames_i, D)``, or a :class:`MaskedUtterance` (None without a
        mask)."""
        if kind == "features":
            return self.weighted(hidden)
        return layers(hidden) if kind == "hidden_states" else masked_utterances(hidden, masks)

    def set_training(self, training: bool) -> None:
        """Switch between training and evaluation; a frozen encoder stays in evaluation mode."""
        self.upstream.train(training and not self.freeze)
        self.featurizer.train(training)


def input_kind(expert: Any) -> InputKind:
    """The kind of input of an expert's `forward`."""
    if draws_masks(expert):
        return "masked"
    return "hidden_states" if wants_hidden_states(expert) else "features"


def wants_hidden_states(expert: Any) -> bool:
    """Whether an expert takes the hidden states of all layers instead of their weighted sum."""
    return bool(getattr(expert, "wants_hidden_states", False))


def draws_masks(expert: Any) -> bool:
    """Whether an expert masks frames, and takes masked utterances instead of features."""
    return callable(getattr(expert, "masks", None))


def masked_utterances(hidden: HiddenStates, masks: Masks) -> list[MaskedUtterance | None]:
    """Each masked utterance; None for those without a mask."""
    states, penalties = hidden.layer(-1), hidden.penalties()
    return [
        None if mask is None else MaskedUtterance(last.float(), mask, penalty)
        for last, mask, penalty in zip(states, masks, penalties, strict=True)
    ]


def check_can_mask(name: str, expert: Any, upstream: Upstream) -> None:
    """Check that the encoder can mask frames, if the task does.

    Raises:
        UserError: it cannot.
    """
    if draws_masks(expert) and not upstream.can_mask:
        raise UserError(
            f"{name} masks frames inside the encoder, which this upstream "
            f"({type(upstream).__name__}) does not support.",
            where=f"-u, -d {name}",
            fix="Use a HuBERT of this package: hubert, hubert_tiny, or -k with a file of fairseq.",
            code="not-supported",
        )


def layers(hidden: HiddenStates) -> list[Tensor]:
    """The hidden states of each utterance, float32 ``(L, frames_i, D)``."""
    return [states.float() for states in hidden.split()]


def _width(mask: Mask, default: int) -> int:
    return default if mask.channels is None else len(mask.channels)
