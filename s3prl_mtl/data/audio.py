"""Waveforms: any audio file in, 16 kHz mono out; and the effects that SUPERB applies."""

from __future__ import annotations

import os
import re

import numpy as np
import soundfile
import torch
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from s3prl_mtl.errors import UserError

SAMPLE_RATE = 16_000
"""Samples a second of every waveform in the program."""

MINIMUM_SAMPLES = 400
"""The receptive field of the encoder's convolutions: anything shorter gives no frame."""


# The length in the header of an mp3 file may be off by two of its frames.
_LOSSY_SLACK_SAMPLES = 2 * 1152

# Written by libsndfile when the audio's chunk of a wav, aiff or au claims more than the file has.
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# What programs that write to a pipe put for "unknown length"; such files are whole.
_UNKNOWN_LENGTH_BYTES = 0x7FFFF000


class UnreadableAudio(UserError):
    """An audio file that cannot be decoded; `utterance_id` says which utterance needed it."""

    utterance_id: str | None = None


def load_waveform(cut: Cut) -> Tensor:
    """The audio of a cut: channels averaged, resampled to 16 kHz.

    Args:
        cut: a lhotse cut, its recording in any format that libsndfile reads (wav, flac, ogg,
            opus, mp3, aiff, ...), of any sample rate and number of channels.

    Returns:
        Waveform (samples,), float32, within [-1, 1].

    Raises:
        UnreadableAudio: the file is gone, damaged, or holds values that are not finite.
    """
    path = _plain_file(cut)
    try:
        channels = cut.load_audio() if path is None else _read_file(path, cut)
    except soundfile.LibsndfileError as error:
        raise _unreadable(cut, libsndfile_reason(error, path)) from error
    except Exception as error:  # lhotse's backends raise whatever theirs do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unreadable(cut, reason) from error
    waveform = torch.from_numpy(np.asarray(channels, dtype=np.float32)).mean(dim=0)
    if not torch.isfinite(waveform).all():
        raise _unreadable(cut, "it holds values that are not finite")
    return resample(waveform, int(cut.sampling_rate)).clamp_(-1.0, 1.0)


def read_audio(path: str | os.PathLike[str]) -> Tensor:
    """The audio of a file: channels averaged, resampled to 16 kHz.

    Args:
        path: a file in any format that libsndfile reads.

    Returns:
        Waveform (samples,), float32, within [-1, 1].

    Raises:
        UnreadableAudio: the file is gone, is no audio, has no samples, or is damaged: it ends
            before its header says, or does not decode to as many samples.
    """
    reason = None
    try:
        with soundfile.SoundFile(path) as file:
            announced, rate, reason = file.frames, file.samplerate, cut_short(file)
            samples = file.read(dtype="float32", always_2d=True)
        if reason is None and len(samples) < announced - _LOSSY_SLACK_SAMPLES:
            reason = (
                f"it announces {announced} samples, of which {len(samples)} can be decoded: it is "
                "damaged, or no audio"
            )
    except soundfile.LibsndfileError as error:
        reason = libsndfile_reason(error, path)
    except OSError as error:
        reason = error.strerror or str(error)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error)  # a name such as x.raw says a format that has no header
    if reason is None and not len(samples):
        reason = "it has no samples"
    if reason is None and not np.isfinite(samples).all():
        reason = "it holds values that are not finite"
    if reason is not None:
        raise UnreadableAudio(
            f"The audio file cannot be read: {reason.rstrip('.')}.",
            where=str(path),
            fix="Give wav, flac, ogg, opus, mp3 or another format that libsndfile reads.",
        )
    return resample(torch.from_numpy(samples).mean(dim=1), int(rate)).clamp_(-1.0, 1.0)


def cut_short(file: soundfile.SoundFile) -> str | None:
    """Why an open file is not whole, as far as its header says; None where nothing is missing.

    The headers of wav, aiff and au say how many bytes of audio there are. One that was written to a
    pipe says that it does not know: such a file is whole.
    """
    found = _CUT_SHORT.search(file.extra_info)
    if found and int(found[2]) < int(found[1]) < _UNKNOWN_LENGTH_BYTES:
        return f"truncated ({found[2]} of {found[1]} bytes of audio)"
    return None


def libsndfile_reason(error: soundfile.LibsndfileError, path: str | os.PathLike[str] | None) -> str:
    """What is wrong with a file that libsndfile refuses.

    Args:
        error: what it raised.
        path: the file, if it is one.
    """
    if path is not None and not os.path.exists(path):
        return "it does not exist"
    reason = str(error.error_string).rstrip(".")
    # libsndfile's word for an mp3 that its decoder finds no frame in.
    if path is not None and os.path.isfile(path) and reason.startswith("File does not exist"):
        return "it is no audio of a format that libsndfile knows"
    return reason


def _plain_file(cut: Cut) -> str | None:
    """The file of a cut that is an untouched stretch of one, or None."""
    if not isinstance(cut, DataCut) or not cut.has_recording or cut.recording.transforms:
        return None
    sources = cut.recording.sources
    return str(sources[0].source) if len(sources) == 1 and sources[0].type == "file" else None


def _read_file(path: str, cut: DataCut) -> np.ndarray:
    """(channels, samples) of a cut, read by libsndfile.

    lhotse would try one backend after another on a damaged file and report the last one's
    failure: that torchaudio is not installed properly, say, instead of what ails the file.
    """
    with soundfile.SoundFile(path) as file:
        file.seek(round(cut.start * file.samplerate))
        asked = round(cut.duration * file.samplerate)
        samples: np.ndarray = file.read(asked, dtype="float32", always_2d=True)
        if len(samples) < asked - _LOSSY_SLACK_SAMPLES:
            raise ValueError(f"it ends after {len(samples)} of {asked} samples")
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    return samples.T[channels]


def resample(waveform: Tensor, sample_rate: int) -> Tensor:
    """A waveform (samples,) brought from `sample_rate` (samples a second) to 16 kHz.

    Windowed-sinc interpolation with the settings of `torchaudio.transforms.Resample`, which
    SUPERB uses; lhotse carries it in plain PyTorch.
    """
    if sample_rate == SAMPLE_RATE:
        return waveform
    resampled: Tensor = get_or_create_resampler(sample_rate, SAMPLE_RATE)(waveform)
    return resampled


def apply_gain(waveform: Tensor, decibels: float) -> Tensor:
    """A waveform (samples,) made louder (or softer) by `decibels`, clipped to [-1, 1]."""
    return (waveform * 10.0 ** (decibels / 20.0)).clamp(-1.0, 1.0)


def random_crop(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """A random stretch of a waveform; shorter waveforms come back whole.

    Args:
        waveform: (all_samples,).
        samples: length of the stretch.
        generator: source of the random start, every start equally likely.

    Returns:
        Waveform (min(all_samples, samples),).
    """
    spare = waveform.shape[0] - samples
    if spare <= 0:
        return waveform
    start = int(torch.randint(spare + 1, (), generator=generator))
    return waveform[start : start + samples]


def _unreadable(cut: Cut, reason: str) -> UnreadableAudio:
    sources = [] if not cut.has_recording else getattr(cut.recording, "sources", [])
    where = ", ".join(str(source.source) for source in sources if source.type == "file")
    error = UnreadableAudio(
        f"The audio of utterance {cut.id} cannot be read: {reason.rstrip('.')}.",
        where=where or None,
        fix="Unpack or convert this file again, or take it out of the corpus.",
    )
    error.utterance_id = cut.id
    return error
