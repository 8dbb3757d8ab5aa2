"""What a caller gives a trained run to listen to: files, or waveforms of any rate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from s3prl_mtl.data import MINIMUM_SAMPLES, SAMPLE_RATE, read_audio, resample
from s3prl_mtl.errors import UserError

Audio = str | os.PathLike[str] | Tensor
"""The path of a file, or a waveform (samples,) in [-1, 1]."""

NOBODY_SPEAKS = "The audio is nothing but silence: there is no speaker to recognise."


def as_waveforms(audio: Sequence[Audio], sample_rate: int) -> list[Tensor]:
    """The waveforms of a list of files and waveforms, each (samples,) at 16 kHz.

    Args:
        audio: paths and waveforms.
        sample_rate: of the waveforms, in samples a second (files have their own).

    Raises:
        TypeError: it is no list, or holds something else; the rate is no whole number.
        ValueError: a waveform is none, or the rate is not positive.
        UserError: as :func:`read_utterance`; or a waveform is too short.
    """
    if isinstance(audio, str | bytes | os.PathLike | Tensor) or not isinstance(audio, Sequence):
        raise TypeError(
            "audio is a list of paths and waveforms, such as [file], and not a "
            f"{type(audio).__name__}"
        )
    return [as_waveform(entry, sample_rate) for entry in audio]


def as_waveform(audio: Audio, sample_rate: int) -> Tensor:
    """The waveform (samples,) at 16 kHz of one entry; as :func:`as_waveforms`."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Integral):
        raise TypeError(f"a sample rate is a whole number, and not {sample_rate!r}")
    if sample_rate < 1:
        raise ValueError(f"a sample rate of {sample_rate} samples a second")
    if isinstance(audio, str | os.PathLike):
        return read_utterance(audio)
    if not isinstance(audio, Tensor):
        raise TypeError(f"audio is a path or a waveform, and not a {type(audio).__name__}")
    if audio.dim() != 1 or not audio.is_floating_point() or not len(audio):
        raise ValueError(
            "a waveform is a 1-D tensor of floats, not empty, and not "
            f"{tuple(audio.shape)} of {audio.dtype}"
        )
    if not audio.isfinite().all():
        raise ValueError("a waveform holds values that are not finite")
    return _long_enough(resample(audio.detach().float().cpu(), int(sample_rate)), audio)


def read_utterance(path: str | os.PathLike[str]) -> Tensor:
    """The waveform of a file for a trained run: mono, 16 kHz, of at least one frame.

    Raises:
        UserError: names the file: it is gone, a folder, no audio, empty, damaged or too short.
    """
    if os.path.isdir(path):
        raise UserError(
            "It is a folder, not an audio file.", where=str(path), fix="Name its files."
        )
    return _long_enough(read_audio(path), path)


def origin_of(audio: Audio) -> str:
    """What errors call an entry: its path, if it has one."""
    return "a waveform" if isinstance(audio, Tensor) else str(audio)


def _long_enough(waveform: Tensor, audio: Audio) -> Tensor:
    if len(waveform) < MINIMUM_SAMPLES:
        raise UserError(
            f"The audio has {len(waveform)} samples at 16 kHz, too few for a frame of the encoder.",
            where=origin_of(audio),
            fix=f"Leave out what is shorter than {MINIMUM_SAMPLES} samples "
            f"({1000 * MINIMUM_SAMPLES // SAMPLE_RATE} ms).",
        )
    return waveform
