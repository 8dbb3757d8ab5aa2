"""Synthesise a small test corpus of five languages with espeak-ng.

python -m lid_task.mini_corpus corpora/languages
"""

from __future__ import annotations

import argparse
import ctypes
import random
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile

WORDS = {
    "de": "eins zwei drei vier fünf sechs Montag Dienstag Sommer Winter Wasser Straße",
    "en": "one two three four five six Monday Tuesday summer winter water street",
    "es": "uno dos tres cuatro cinco seis lunes martes verano invierno agua calle",
    "it": "uno due tre quattro cinque sei lunedì martedì estate inverno acqua strada",
    "pl": "jeden dwa trzy cztery pięć sześć poniedziałek wtorek lato zima woda ulica",
}
VOICES = {"train": ("m1", "m3", "f1", "f2"), "dev": ("m7", "f4"), "test": ("m5", "f5")}
"""Variants of espeak-ng's voices; each is in one split only."""
SENTENCES_PER_VOICE = 3
WORDS_PER_SENTENCE = 4

_SYNCHRONOUS, _DONT_EXIT, _CHARACTERS, _UTF8 = 2, 0x8000, 1, 1
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def make_corpus(root: Path, sentences: int = SENTENCES_PER_VOICE) -> None:
    """Write the corpus, which is not a benchmark: twelve words per language, four per utterance.

    Args:
        root: folder in which `train`, `dev` and `test` are created.
        sentences: utterances per voice and language.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_path = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _DONT_EXIT)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng does not start with the voices of {data_path.decode()}")
    pieces: list[np.ndarray] = []

    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _Callback(keep)
    library.espeak_SetSynthCallback(callback)
    draw = random.Random(0)
    for split, variants in VOICES.items():
        for language, words in WORDS.items():
            for variant in variants:
                if library.espeak_SetVoiceByName(f"{language}+{variant}".encode()) != 0:
                    raise RuntimeError(f"espeak-ng has no voice {language}+{variant}")
                for number in range(sentences):
                    text = " ".join(draw.sample(words.split(), WORDS_PER_SENTENCE)).encode() + b"\0"
                    pieces.clear()
                    size = ctypes.c_size_t(len(text))
                    library.espeak_Synth(text, size, 0, _CHARACTERS, 0, _UTF8, None, None)
                    library.espeak_Synchronize()
                    folder = root / split / language
                    folder.mkdir(parents=True, exist_ok=True)
                    # Corpora are resampled to 16 kHz when they are read.
                    waveform = np.concatenate(pieces)
                    soundfile.write(folder / f"{variant}_{number}.wav", waveform, rate)
    library.espeak_Terminate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lid_task.mini_corpus")
    parser.add_argument(
        "root", type=Path, help="folder in which `train`, `dev` and `test` are created"
    )
    root = parser.parse_args().root
    try:
        make_corpus(root)
    except OSError as error:
        parser.error(f"{error.filename or root} cannot be written: {error.strerror or error}.")


if __name__ == "__main__":
    main()
