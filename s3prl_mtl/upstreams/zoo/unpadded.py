"""Call encoders of other packages without padding, and without effects of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.base import HiddenStates

Encode = Callable[[list[Tensor]], Sequence[Tensor]]
"""Waveforms of one length -> hidden states, each ``(utterances, frames, width)``."""

SHORT_SAMPLES = 4000
"""0.25 s: an error on a longer waveform is not due to its length."""
PROBE_SAMPLES = (16_000, 41_600)
"""Two lengths that differ by a multiple of every usual stride (160, 320, 640, 1280)."""

TOLERATED_FRAMES = 5
"""Tolerance of a stated frame rate, in frames of an utterance, as in s3prl."""


@dataclass(frozen=True)
class OutputShape:
    """The output of an encoder: see the attributes of :class:`Upstream`."""

    hidden_size: int
    num_hidden_states: int
    downsample_rate: int


def encode_by_length(
    wavs: Sequence[Tensor], encode: Encode, name: str, one_by_one: bool = False
) -> HiddenStates:
    """Encode waveforms ``(samples_i,)`` in batches of equal length, so that nothing is padded.

    Args:
        wavs: at least one.
        encode: the encoder.
        name: of the encoder, for errors.
        one_by_one: encode each waveform alone; for encoders where :func:`depends_on_batch`.

    Raises:
        UserError: an utterance is too short: the encoder fails, gives no frame, or gives
            non-finite values although it does not for a longer one. The place holds its index.
    """
    by_length: dict[tuple[int, int], list[int]] = {}
    for index, wav in enumerate(wavs):
        by_length.setdefault((len(wav), index if one_by_one else 0), []).append(index)
    encoded: dict[int, Tensor] = {}
    for (samples, _), indices in by_length.items():
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
        if samples < SHORT_SAMPLES and not torch.isfinite(states).all():
            # The variance of a single frame is undefined. If a longer waveform gives non-finite
            # values too, the weights are at fault, which is not reported here.
            finite = torch.isfinite(states).flatten(2).all(dim=2).all(dim=0).tolist()
            bad = next(index for index, good in zip(indices, finite, strict=True) if not good)
            if torch.isfinite(wavs[bad]).all() and _is_finite_for_noise(encode, wavs[bad]):
                raise _too_short(bad, samples, len(wavs), name)
        encoded |= {index: states[:, row] for row, index in enumerate(indices)}
    ordered = [encoded[index] for index in range(len(wavs))]
    return HiddenStates(torch.cat(ordered, dim=1), [states.shape[1] for states in ordered])


def depends_on_batch(encode: Encode) -> bool:
    """Whether an utterance's features change with another one of its length in the batch.

    Args:
        encode: the encoder, in evaluation mode.
    """
    wav, other = _noise(PROBE_SAMPLES[0], 0), 50 * _noise(PROBE_SAMPLES[0], 1)
    with torch.no_grad():
        alone, together = list(encode([wav])), list(encode([wav, other]))
    return any(
        not torch.allclose(one[0], two[0], rtol=1e-3, atol=1e-3 * float(one.abs().mean()))
        for one, two in zip(alone, together, strict=True)
    )


def probe(encode: Encode, name: str, where: str, stated_rate: int | None = None) -> OutputShape:
    """Find the output shape of an encoder by encoding noise of two lengths.

    Args:
        encode: the encoder, in evaluation mode.
        name: of the encoder, for errors.
        where: the flag that names it, for errors.
        stated_rate: samples from one frame to the next, if the encoder states it.

    Raises:
        UserError: the hidden states differ in width or in frames, or the number of frames is not
            proportional to the duration.
    """
    frames = []
    for samples in PROBE_SAMPLES:
        with torch.no_grad():
            states = list(encode([_noise(samples, 0)]))
        widths = {state.shape[-1] for state in states}
        lengths = {state.shape[1] for state in states}
        for what, values in (("width", widths), ("number of frames", lengths)):
            if len(values) != 1:
                raise UserError(
                    f"The hidden states of {name} differ in {what}: {sorted(values)}.",
                    where=where,
                    fix="Choose another upstream: a weighted sum needs equal shapes.",
                    code="upstream-failed",
                )
        frames.append(lengths.pop())
    return OutputShape(widths.pop(), len(states), _rate(frames, stated_rate, name, where))


def _noise(samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def _is_finite_for_noise(encode: Encode, like: Tensor) -> bool:
    with torch.no_grad():
        states = encode([_noise(PROBE_SAMPLES[0], 0).to(like)])
    return all(bool(torch.isfinite(state).all()) for state in states)


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
        f"The number of frames of {name} is not proportional to the duration: {frames[0]} for "
        f"{PROBE_SAMPLES[0]} samples, {frames[1]} for {PROBE_SAMPLES[1]}"
        + (f", although it states {stated} samples a frame." if stated is not None else "."),
        where=where,
        fix="Choose an upstream that gives frames at a fixed rate.",
        code="upstream-failed",
    )


def _too_short(index: int, samples: int, count: int, name: str) -> UserError:
    return UserError(
        f"Utterance {index} of the batch has {samples} samples, too few for one frame of {name}.",
        where=f"waveform {index} of the {count} given to the encoder ({samples} samples)",
        fix="Leave out such short utterances.",
        code="audio-too-short",
    )
