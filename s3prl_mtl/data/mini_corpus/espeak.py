"""Speech synthesis by espeak-ng, called through ctypes."""

from __future__ import annotations

import ctypes

import numpy as np

from s3prl_mtl.errors import UserError

ESPEAK_RATE = 22_050

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: espeak_Synth returns when all samples were handed over
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report missing data instead of exiting
_POSITION_CHARACTER = 1
_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 2, 3, 4

_SampleCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def espeak_paths() -> tuple[str, str]:
    """Paths of espeak-ng's shared library and of its voices.

    Raises:
        UserError: the wheel that holds them is not installed.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "The mini corpus is synthesised by espeak-ng, which is not installed.",
            where="the Python package espeakng-loader",
            fix='pip install "s3prl-mtl[demo]"',
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def synthesise(
    text: str, voice: str, *, words_per_minute: float, pitch: float, pitch_range: float
) -> np.ndarray:
    """Speak a text.

    The result depends on the arguments alone. espeak-ng carries its echo buffer, oscillator
    phases and random state from one utterance to the next, even over `espeak_Terminate`; so the
    library is loaded afresh for each call and unloaded afterwards (a few milliseconds).
    Not to be called where something else has the library loaded: it would then stay loaded.

    Args:
        text: the words.
        voice: espeak-ng's name of the voice, with variant, such as `en-us+f2`.
        words_per_minute: 80 to 450.
        pitch: 0 to 100; 50 is the voice's own.
        pitch_range: 0 (monotone) to 100; 50 is the voice's own.

    Returns:
        float64 waveform (samples,) in [-1, 1] at `ESPEAK_RATE`.

    Raises:
        UserError: espeak-ng is missing, does not start, or has no such voice.
    """
    library_path, data_path = espeak_paths()
    pieces: list[np.ndarray] = []

    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _SampleCallback(keep)
    library = ctypes.CDLL(library_path)
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _DONT_EXIT)
        if rate != ESPEAK_RATE:
            raise UserError(
                "espeak-ng does not start: its voices cannot be read.",
                where=data_path,
                fix="Install it where the path is short (it reads up to 150 characters): pip "
                'install --force-reinstall "s3prl-mtl[demo]"',
            )
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice!r}.", where=data_path)
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
    if not pieces:
        raise RuntimeError(f"espeak-ng returned no sound for {text!r} with voice {voice!r}")
    return np.concatenate(pieces) / 32_768.0
