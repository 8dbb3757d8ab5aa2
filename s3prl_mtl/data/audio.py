"""Read audio as 16 kHz mono waveforms, and apply the effects of SUPERB."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from s3prl_mtl.data.archives import file_size, open_file
from s3prl_mtl.errors import UserError

SAMPLE_RATE = 16_000
"""Sample rate of every waveform, in Hz."""

EFFECT = "effect"
"""Entry of `cut.custom`: a function that changes the waveform (samples,) of the cut."""

MINIMUM_SAMPLES = 400
"""Receptive field of the encoder's convolutions: shorter waveforms give no frame."""

# The length in the header of an mp3 file may be off by two mp3 frames.
LOSSY_SLACK_SAMPLES = 2 * 1152

# Logged by libsndfile if the header of a wav, aiff or au states more audio than the file has.
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Length written by programs that write to a pipe ("unknown"); such files are complete.
_UNKNOWN_LENGTH_BYTES = 0x7FFFF000


class UnreadableAudio(UserError):
    """An audio file that cannot be decoded.

    Args:
        what: the problem, a full sentence.
        where: the file.
        fix: the remedy.
        code: one of `s3prl_mtl.errors.CODES`.
        utterance_id: the utterance that needed the file.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        code: str = "audio-unreadable",
        utterance_id: str | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix, code=code)
        self.utterance_id = utterance_id


def load_waveform(cut: Cut) -> Tensor:
    """Read the audio of a cut, average its channels and resample to 16 kHz.

    Args:
        cut: a lhotse cut in any format of libsndfile (wav, flac, ogg, opus, mp3, aiff, ...), at any
            sample rate and with any number of channels.

    Returns:
        Waveform (samples,), float32, within [-1, 1].

    Raises:
        UnreadableAudio: the file is missing or damaged, or contains non-finite values.
    """
    path = _plain_file(cut)
    try:
        channels = cut.load_audio() if path is None else _read_file(path, cut)
    except soundfile.LibsndfileError as error:
        raise _unreadable(cut, libsndfile_reason(error, path)) from error
    except Exception as error:  # lhotse's backends raise errors of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unreadable(cut, reason) from error
    waveform = torch.from_numpy(np.asarray(channels, dtype=np.float32)).mean(dim=0)
    if not torch.isfinite(waveform).all():
        raise _unreadable(cut, "it contains non-finite values")
    waveform = resample(waveform, int(cut.sampling_rate)).clamp_(-1.0, 1.0)
    effect = (getattr(cut, "custom", None) or {}).get(EFFECT)
    return waveform if effect is None else effect(waveform)


def read_audio(path: str | os.PathLike[str]) -> Tensor:
    """Read an audio file, average its channels and resample to 16 kHz.

    Args:
        path: a file in any format of libsndfile.

    Returns:
        Waveform (samples,), float32, within [-1, 1].

    Raises:
        UnreadableAudio: the file is missing, not audio, empty or damaged (fewer bytes or samples
            than its header states).
    """
    reason = None
    try:
        with soundfile.SoundFile(open_file(path)) as file:
            announced, rate, reason = file.frames, file.samplerate, cut_short(file)
            samples = file.read(dtype="float32", always_2d=True)
        if reason is None and len(samples) < announced - LOSSY_SLACK_SAMPLES:
            reason = (
                f"{len(samples)} of {announced} samples can be decoded; it is damaged or not audio"
            )
    except soundfile.LibsndfileError as error:
        reason = libsndfile_reason(error, path)
    except OSError as error:
        reason = str(error)  # names an archive
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error)  # for example a suffix of a format without header, such as .raw
    if reason is None and not len(samples):
        reason = "it has no samples"
    if reason is None and not np.isfinite(samples).all():
        reason = "it contains non-finite values"
    if reason is not None:
        raise unreadable_file(path, reason)
    return resample(torch.from_numpy(samples).mean(dim=1), int(rate)).clamp_(-1.0, 1.0)


def unreadable_file(path: str | os.PathLike[str], reason: str) -> UnreadableAudio:
    """The error for an audio file that cannot be read.

    Args:
        path: of the file.
        reason: why.
    """
    return UnreadableAudio(
        f"The audio file cannot be read: {reason.rstrip('.')}.",
        where=str(path),
        fix="Use wav, flac, ogg, opus, mp3 or another format of libsndfile.",
        code="audio-unreadable" if os.path.exists(path) else "file-missing",
    )


def describe(path: str | os.PathLike[str], file: soundfile.SoundFile) -> Recording:
    """lhotse's description of an open audio file.

    Args:
        path: of the file.
        file: the same, open.
    """
    channels = list(range(file.channels))
    return Recording(
        id=Path(path).stem,
        sources=[AudioSource(type="file", channels=channels, source=os.fspath(path))],
        sampling_rate=file.samplerate,
        num_samples=file.frames,
        duration=file.frames / file.samplerate,
        channel_ids=channels,
    )


def cut_short(file: soundfile.SoundFile) -> str | None:
    """Describe the truncation of an open file according to its header, or None.

    Headers of wav, aiff and au state the number of bytes of audio, or "unknown" in files written
    to a pipe; these count as complete.
    """
    found = _CUT_SHORT.search(file.extra_info)
    if found and int(found[2]) < int(found[1]) < _UNKNOWN_LENGTH_BYTES:
        return f"truncated ({found[2]} of {found[1]} bytes of audio)"
    return None


def libsndfile_reason(error: soundfile.LibsndfileError, path: str | os.PathLike[str] | None) -> str:
    """The reason why libsndfile cannot read a file.

    Args:
        error: the exception of libsndfile.
        path: the file; None if the audio is not a file.
    """
    if path is not None and file_size(path) is None:
        return "it is not a file" if os.path.exists(path) else "it does not exist"
    reason = str(error.error_string).rstrip(".")
    # libsndfile's message for an mp3 without a valid frame.
    if path is not None and os.path.isfile(path) and reason.startswith("File does not exist"):
        return "it is not audio in a format of libsndfile"
    return reason


def _plain_file(cut: Cut) -> str | None:
    """The file of a cut that is an unmodified segment of one file, otherwise None."""
    if not isinstance(cut, DataCut) or not cut.has_recording or cut.recording.transforms:
        return None
    sources = cut.recording.sources
    return str(sources[0].source) if len(sources) == 1 and sources[0].type == "file" else None


def _read_file(path: str, cut: DataCut) -> np.ndarray:
    """Read (channels, samples) of a cut with libsndfile.

    On a damaged file, lhotse tries all its backends and reports the failure of the last one (for
    example a broken torchaudio) instead of the fault of the file.
    """
    with soundfile.SoundFile(open_file(path)) as file:
        file.seek(round(cut.start * file.samplerate))
        asked = round(cut.duration * file.samplerate)
        samples: np.ndarray = file.read(asked, dtype="float32", always_2d=True)
        if len(samples) < asked - LOSSY_SLACK_SAMPLES:
            raise ValueError(f"it ends after {len(samples)} of {asked} samples")
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    return samples.T[channels]


def resample(waveform: Tensor, sample_rate: int) -> Tensor:
    """Resample a waveform (samples,) from `sample_rate` (Hz) to 16 kHz.

    Windowed-sinc interpolation with the defaults of `torchaudio.transforms.Resample`, as in
    SUPERB, from lhotse's implementation in plain PyTorch.
    """
    if sample_rate == SAMPLE_RATE:
        return waveform
    resampled: Tensor = get_or_create_resampler(sample_rate, SAMPLE_RATE)(waveform)
    return resampled


def apply_gain(waveform: Tensor, decibels: float) -> Tensor:
    """Amplify a waveform (samples,) by `decibels` and clip it to [-1, 1]."""
    return (waveform * 10.0 ** (decibels / 20.0)).clamp(-1.0, 1.0)


def random_crop(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """A random segment of a waveform; shorter waveforms are returned whole.

    Args:
        waveform: (all_samples,).
        samples: length of the segment.
        generator: for the start, uniformly distributed.

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
    return UnreadableAudio(
        f"The audio of utterance {cut.id} cannot be read: {reason.rstrip('.')}.",
        where=where or None,
        fix="Replace this file, or remove it from the corpus and its lists.",
        utterance_id=cut.id,
    )
