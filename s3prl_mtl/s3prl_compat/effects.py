"""Effects of SoX that s3prl's experts apply to waveforms.

| effect | here | how it differs from SoX |
| --- | --- | --- |
| `channels N` | mean of all channels for 1, copies of the only one for N | |
| `rate R` | windowed sinc | another filter: samples differ a little near R / 2 |
| `gain dB` | scaled and clipped | |
| `norm [dB]` | scaled to a peak of dB, 0 by default | |
| `silence 1 S T% -1 S T%` | `s3prl_mtl.data.trim_silence`; one channel at 16 kHz | see there |
| `pad A B` | A seconds of zeros before, B after | |
| `trim A [D]` | D seconds from A | |
| `reverse` | | |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from lhotse.augmentation import get_or_create_resampler
from torch import Tensor

from s3prl_mtl.data import SAMPLE_RATE, apply_gain, trim_silence
from s3prl_mtl.errors import UserError

Waveform = tuple[Tensor, int]
"""Samples (channels, samples), and the sample rate in Hz."""


def apply_effects(waveform: Tensor, sample_rate: int, effects: Sequence[Sequence[str]]) -> Waveform:
    """Apply a chain of effects to a waveform.

    Args:
        waveform: (channels, samples), float32 in [-1, 1].
        sample_rate: in Hz.
        effects: each the name of an effect, followed by its arguments.

    Returns:
        (channels, samples), and the sample rate in Hz.

    Raises:
        UserError: an effect, or a form of it, that is not supported.
    """
    for effect in effects:
        name, *arguments = [str(word) for word in effect]
        function = EFFECTS.get(name)
        if function is None:
            raise _not_supported(effect)
        try:
            waveform, sample_rate = function(waveform, sample_rate, arguments)
        except (ValueError, IndexError) as cause:
            raise _not_supported(effect) from cause
    return waveform, sample_rate


def _not_supported(effect: Sequence[str]) -> UserError:
    return UserError(
        f"The SoX effect {' '.join(map(str, effect))!r} is not supported.",
        where=f"torchaudio.sox_effects, effect {' '.join(map(str, effect))!r}",
        fix=f"Use {', '.join(EFFECTS)} in the forms listed in docs/s3prl-experts.md.",
        code="not-supported",
    )


def _channels(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    (count,) = map(int, arguments)
    present = waveform.shape[0]
    if count < 1 or (1 not in (count, present) and count != present):
        raise ValueError("neither one channel nor from one channel")
    if count == present:
        return waveform, rate
    return (waveform.mean(0, keepdim=True) if count == 1 else waveform.repeat(count, 1)), rate


def _rate(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    (wanted,) = map(int, arguments)
    if wanted == rate:
        return waveform, rate
    return get_or_create_resampler(rate, wanted)(waveform), wanted


def _gain(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    (decibels,) = map(float, arguments)
    return apply_gain(waveform, decibels), rate


def _norm(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    (decibels,) = map(float, arguments or ["0"])
    peak = waveform.abs().max() if waveform.numel() else torch.zeros(())
    if peak == 0:
        return waveform, rate
    return (waveform * (10.0 ** (decibels / 20.0) / peak)).clamp(-1.0, 1.0), rate


def _silence(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    above, *first = arguments[:3]
    below, *second = arguments[3:]
    seconds, threshold = first
    if (above, below) != ("1", "-1") or first != second or not threshold.endswith("%"):
        raise ValueError("not the form that drops every silence")
    if waveform.shape[0] != 1 or rate != SAMPLE_RATE:
        raise ValueError("not one channel at 16 kHz")
    fraction = float(threshold.removesuffix("%")) / 100
    return trim_silence(waveform[0], fraction, float(seconds)).unsqueeze(0), rate


def _pad(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    before, after = (round(float(seconds) * rate) for seconds in arguments)
    return torch.nn.functional.pad(waveform, (before, after)), rate


def _trim(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    start, *length = (round(float(seconds) * rate) for seconds in arguments)
    if len(length) > 1 or start < 0:
        raise ValueError("neither a start nor a start and a length")
    return waveform[:, start : start + length[0] if length else None], rate


def _reverse(waveform: Tensor, rate: int, arguments: Sequence[str]) -> Waveform:
    if arguments:
        raise ValueError("reverse takes no argument")
    return waveform.flip(1), rate


EFFECTS: Mapping[str, Callable[[Tensor, int, Sequence[str]], Waveform]] = {
    "channels": _channels,
    "rate": _rate,
    "gain": _gain,
    "norm": _norm,
    "silence": _silence,
    "pad": _pad,
    "trim": _trim,
    "reverse": _reverse,
}
