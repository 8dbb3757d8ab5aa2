"""Speech synthesis by espeak-ng, called through ctypes."""

from __future__ import annotations

import ctypes

import numpy as np

from s3prl_mtl.errors import UserError

ESPEAK_RATE = 22_050

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: espeak_Synth returns after delivering all samples
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report missing data instead of exiting
_POSITION_CHARACTER = 1
_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 2, 3, 4

_SampleCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def espeak_paths() -> tuple[str, str]:
    """Paths of espeak-ng's shared library and its voice data.

    Raises:
        UserError: the package that contains them is not installed.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "The mini corpus requires espeak-ng, which is not installed.",
            where="the Python package espeakng-loader",
            fix='pip install "s3prl-mtl[demo]"',
            code="missing-package",
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def synthesise(
    text: str, voice: str, *, words_per_minute: float, pitch: float, pitch_range: float
) -> np.ndarray:
    """Synthesise a text.

    The result depends on the arguments only. espeak-ng keeps its echo buffer, oscillator phases
    and random state between utterances, even across `espeak_Terminate`, so each call loads the
    library and unloads it again (a few milliseconds). Do not call this in a process in which the
    library is otherwise loaded: it would stay loaded.

    Args:
        text: the words.
        voice: espeak-ng's name of the voice and variant, such as `en-us+f2`.
        words_per_minute: 80 to 450.
        pitch: 0 to 100; 50 is the default of the voice.
        pitch_range: 0 (monotone) to 100; 50 is the default of the voice.

    Returns:
        Waveform (samples,), float64, within [-1, 1], at `ESPEAK_RATE`.

    Raises:
        UserError: espeak-ng is missing or does not start, or unknown voice.
    """
    library_path, data_path = espeak_paths()
    chunks: list[np.ndarray] = []

    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _SampleCallback(keep)
    library = ctypes.CDLL(library_path)
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _DONT_EXIT)
        if rate != ESPEAK_RATE:
            raise UserError(
                "espeak-ng does not start: it cannot read its voice data.",
                where=data_path,
                fix="Install it in a path of at most 150 characters: pip install "
                '--force-reinstall "s3prl-mtl[demo]"',
                code="missing-package",
            )
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(
                f"Unknown voice {voice!r} of espeak-ng.", where=data_path, code="unknown-name"
            )
        for parameter, value in (
            (_PARAMETER_RATE, words_per_minute),
            (_PARAMETER_VOLUME, 80.0),
            (_PARAMETER_PITCH, pitch),
            (_PARAMETER_RANGE, pitch_range),
        ):
            library.espeak_SetParameter(parameter, round(value), 0)
        encoded = text.encode() + b"\0"
        library.espeak_Synth(
            encoded,
            ctypes.c_size_t(len(encoded)),
            0,
            _POSITION_CHARACTER,
            0,
            _UTF8,
            None,
            None,
        )
        library.espeak_Synchronize()
    finally:
        library.espeak_Terminate()
        unload = ctypes.CDLL(None).dlclose
        unload.argtypes = [ctypes.c_void_p]
        unload(library._handle)
    if not chunks:
        raise RuntimeError(f"espeak-ng returned no sound for {text!r} with voice {voice!r}")
    return np.concatenate(chunks) / 32_768.0
