"""Encoders of others, called so that no utterance sees another one or padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.base import HiddenStates

Encode = Callable[[list[Tensor]], Sequence[Tensor]]
"""Waveforms of one length in, one ``(utterances, frames, width)`` a hidden state out."""

SHORT_SAMPLES = 4000
"""0.25 s: an encoder that fails on a longer waveform fails for another reason than its length."""
PROBE_SAMPLES = (16_000, 41_600)
"""Two lengths that differ by a multiple of every usual stride (160, 320, 640, 1280)."""

TOLERATED_FRAMES = 5
"""How far a stated rate may be off, as in s3prl."""


def encode_by_length(wavs: Sequence[Tensor], encode: Encode, name: str) -> HiddenStates:
    """Encode waveforms ``(samples_i,)``; only those of the same length go through together.

    Such a batch has no padding, so that whatever an encoder does with padding does not happen.

    Args:
        wavs: at least one.
        encode: the encoder.
        name: of the encoder, for errors.

    Raises:
        UserError: an utterance is too short; the message gives its index.
    """
    by_length: dict[int, list[int]] = {}
    for index, wav in enumerate(wavs):
        by_length.setdefault(len(wav), []).append(index)
    pieces: dict[int, Tensor] = {}
    for samples, indices in by_length.items():
        try:
            states = torch.stack(list(encode([wavs[index] for index in indices])))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as cause:
            if samples >= SHORT_SAMPLES:
                raise
            raise _too_short(indices[0], samples, len(wavs), name) from cause
        if states.shape[2] < 1:
            raise _too_short(indices[0], samples, len(wavs), name)
        pieces |= {index: states[:, row] for row, index in enumerate(indices)}
    ordered = [pieces[index] for index in range(len(wavs))]
    return HiddenStates(torch.cat(ordered, dim=1), [piece.shape[1] for piece in ordered])


def probe(
    encode: Encode, name: str, where: str, stated_rate: int | None = None
) -> tuple[int, int, int]:
    """Find out what an encoder gives, by encoding noise of two lengths.

    Args:
        encode: the encoder, in evaluation mode.
        name: of the encoder, for errors.
        where: what asked for it, for errors.
        stated_rate: samples from one frame to the next, where the encoder says so itself.

    Returns:
        width of the hidden states, their number, samples from one frame to the next.

    Raises:
        UserError: the hidden states differ in width or in frames, or their frames do not follow
            the time.
    """
    frames = []
    for samples in PROBE_SAMPLES:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            states = list(encode([0.1 * torch.randn(samples, generator=generator)]))
        widths = {state.shape[-1] for state in states}
        lengths = {state.shape[1] for state in states}
        if len(widths) != 1 or len(lengths) != 1:
            what = "width" if len(widths) != 1 else "frames"
            values = sorted(widths if len(widths) != 1 else lengths)
            raise UserError(
                f"The hidden states of {name} differ in {what}: {values}.",
                where=where,
                fix="Choose another upstream: a weighted sum needs the same of all of them.",
            )
        frames.append(lengths.pop())
    return widths.pop(), len(states), _rate(frames, stated_rate, name, where)


def _rate(frames: Sequence[int], stated: int | None, name: str, where: str) -> int:
    more_samples, more_frames = PROBE_SAMPLES[1] - PROBE_SAMPLES[0], frames[1] - frames[0]
    if stated is not None:
        surplus = [
            abs(n - samples / stated) for n, samples in zip(frames, PROBE_SAMPLES, strict=True)
        ]
        if max(surplus) < TOLERATED_FRAMES:
            return stated
    elif more_frames >= 1 and more_samples % more_frames == 0:
        return more_samples // more_frames
    raise UserError(
        f"The frames of {name} do not follow the time: {frames[0]} for {PROBE_SAMPLES[0]} "
        f"samples, {frames[1]} for {PROBE_SAMPLES[1]}"
        + (f", while it states {stated} samples a frame." if stated is not None else "."),
        where=where,
        fix="Choose an upstream that gives frames at a fixed rate.",
    )


def _too_short(index: int, samples: int, count: int, name: str) -> UserError:
    return UserError(
        f"Utterance {index} of the batch has {samples} samples, too few for one frame of {name}.",
        where=f"waveform {index} of the {count} given to the encoder",
        fix="Leave out such short utterances.",
    )
