"""Audio input of a trained run: files, or waveforms of any sample rate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from s3prl_mtl.data import MINIMUM_SAMPLES, SAMPLE_RATE, read_audio, resample
from s3prl_mtl.errors import UserError

Audio = str | os.PathLike[str] | Tensor
"""The path of a file, or a waveform (samples,) in [-1, 1]."""

SILENCE = "The audio is digital silence: there is no speaker to recognise."


def as_waveforms(audio: Sequence[Audio], sample_rate: int) -> list[Tensor]:
    """Waveforms (samples,) at 16 kHz of a list of paths and waveforms.

    Args:
        audio: paths and waveforms.
        sample_rate: of the waveforms, in Hz (files have their own).

    Raises:
        TypeError: not a list, an entry of another type, or a rate that is not an integer.
        ValueError: a waveform of another shape or dtype, or a rate that is not positive.
        UserError: as :func:`read_utterance`; or a waveform is too short.
    """
    if isinstance(audio, str | bytes | os.PathLike | Tensor) or not isinstance(audio, Sequence):
        raise TypeError(
            "audio must be a list of paths and waveforms, such as [file], not a "
            f"{type(audio).__name__}"
        )
    return [as_waveform(entry, sample_rate) for entry in audio]


def as_waveform(audio: Audio, sample_rate: int) -> Tensor:
    """The waveform (samples,) at 16 kHz of one entry; see :func:`as_waveforms`."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Integral):
        raise TypeError(f"sample_rate must be an integer, not {sample_rate!r}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be positive, not {sample_rate}")
    if isinstance(audio, str | os.PathLike):
        return read_utterance(audio)
    if not isinstance(audio, Tensor):
        raise TypeError(f"audio must be a path or a waveform, not a {type(audio).__name__}")
    if audio.dim() != 1 or not audio.is_floating_point() or not len(audio):
        raise ValueError(
            "a waveform must be a non-empty 1-D tensor of floats, not "
            f"{tuple(audio.shape)} of {audio.dtype}"
        )
    if not audio.isfinite().all():
        raise ValueError("a waveform must be finite")
    return check_length(resample(audio.detach().float().cpu(), int(sample_rate)), audio)


def read_utterance(path: str | os.PathLike[str]) -> Tensor:
    """Read a file as a waveform: mono, 16 kHz, at least one frame.

    Raises:
        UserError: the file is missing, a folder, not audio, empty, damaged or too short.
    """
    if os.path.isdir(path):
        raise UserError(
            "The path is a folder, not an audio file.",
            where=str(path),
            fix="Give files. The command `predict` takes folders that have audio.",
            code="audio-unreadable",
        )
    return check_length(read_audio(path), path)


def audio_name(audio: Audio) -> str:
    """The name of an entry in errors: its path, if it has one."""
    return "a waveform" if isinstance(audio, Tensor) else str(audio)


def check_length(waveform: Tensor, audio: Audio) -> Tensor:
    """The waveform (samples,) at 16 kHz, if the encoder has a frame for it.

    Raises:
        UserError: it is too short.
    """
    if len(waveform) < MINIMUM_SAMPLES:
        raise UserError(
            f"The audio has {len(waveform)} samples at 16 kHz, fewer than a frame of the encoder.",
            where=audio_name(audio),
            fix=f"Leave out audio of fewer than {MINIMUM_SAMPLES} samples "
            f"({1000 * MINIMUM_SAMPLES // SAMPLE_RATE} ms).",
            code="audio-too-short",
        )
    return waveform
