"""Speech Commands v0.01 and its test set: single words of one second, and noise.

    speech_commands_v0.01/
      <word>/<speaker: 8 hex digits>_nohash_<n>.wav
      _background_noise_/<noise>.wav
      testing_list.txt  validation_list.txt        <word>/<file>
    speech_commands_test_set_v0.01/
      <keyword>/*.wav  _unknown_/*.wav  _silence_/*.wav

The SHA-1 of the speaker's name determines the split: below 10 % validation, 10 to 20 % testing
(not used by SUPERB, which uses the separate test set), the rest training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_mtl.data.mini_corpus.recording import (
    Phrase,
    Plan,
    Prosody,
    Recording,
    Renderings,
    generator,
    write_lines,
)
from s3prl_mtl.data.mini_corpus.speakers import READERS, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import KEYWORDS, UNKNOWN_WORDS

ROOT = "speech_commands_v0.01"
TEST_ROOT = "speech_commands_test_set_v0.01"
NOISE_FILES = {
    "white_noise": "white",
    "pink_noise": "pink",
    "brown_noise": "brown",
    "running_tap": "tap",
    "mains_hum": "hum",
    "exercise_bike": "bike",
}
_BUCKETS = 2**27  # constant of the data set's split rule


@dataclass(frozen=True)
class Amounts:
    """Speakers of each part; `takes` is the repetitions of a word by a training speaker."""

    training: int
    validation: int
    testing: int
    test_set: int
    takes: int
    noise_seconds: float


AMOUNTS = {
    "tiny": Amounts(training=2, validation=1, testing=1, test_set=1, takes=1, noise_seconds=10.0),
    "mini": Amounts(training=20, validation=4, testing=2, test_set=8, takes=2, noise_seconds=30.0),
}


def hash_fraction(speaker: str) -> float:
    """Position of a speaker in [0, 1) according to the data set's split rule."""
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % _BUCKETS / (_BUCKETS - 1)


def plan(size: str, seed: int) -> Plan:
    """The recordings and split lists of Speech Commands and of its test set."""
    rng = generator(seed, ROOT)
    amounts = AMOUNTS[size]
    parts = {
        "training": (amounts.training, 0.2, 1.1, amounts.takes),
        "validation": (amounts.validation, 0.0, 0.1, 1),
        "testing": (amounts.testing, 0.1, 0.2, 1),
        "test_set": (amounts.test_set, 0.1, 0.2, 1),
    }
    voices = iter(draw_speakers(sum(part[0] for part in parts.values()), READERS, rng))
    recordings: list[Recording] = []
    lists: dict[str, list[str]] = {part: [] for part in parts}
    for part, (speakers, low, high, takes) in parts.items():
        for speaker_index in range(speakers):
            name, voice = _name_between(low, high, rng), next(voices)
            words = _test_words(speaker_index) if part == "test_set" else KEYWORDS + UNKNOWN_WORDS
            for word in words:
                for take in range(takes):
                    folder = word if part != "test_set" or word in KEYWORDS else "_unknown_"
                    path = f"{folder}/{name}_nohash_{take}.wav"
                    lists[part].append(path)
                    recordings.append(
                        Recording(
                            path=f"{TEST_ROOT if part == 'test_set' else ROOT}/{path}",
                            # Slower and clearer than running speech.
                            tracks=((Phrase(word, voice, Prosody(rate=0.85)),),),
                            noise=str(rng.choice(["pink", "brown", "white"])),
                            noise_db=float(rng.uniform(-60, -50)),
                            seconds=1.0,
                        )
                    )
    for name, noise in NOISE_FILES.items():
        recordings.append(
            Recording(
                path=f"{ROOT}/_background_noise_/{name}.wav",
                tracks=(),
                noise=noise,
                noise_db=-38.0,
                seconds=amounts.noise_seconds,
            )
        )
    for index in range(max(2, amounts.test_set)):
        recordings.append(
            Recording(
                path=f"{TEST_ROOT}/_silence_/{_name_between(0.1, 0.2, rng)}_nohash_0.wav",
                tracks=(),
                noise=list(NOISE_FILES.values())[index % len(NOISE_FILES)],
                noise_db=float(rng.uniform(-42, -36)),
                seconds=1.0,
            )
        )

    def write_side_files(root: Path, _renderings: Renderings) -> None:
        write_lines(root / ROOT / "validation_list.txt", sorted(lists["validation"]))
        write_lines(root / ROOT / "testing_list.txt", sorted(lists["testing"]))

    return Plan(recordings, write_side_files)


def _test_words(speaker_index: int) -> list[str]:
    """All keywords and one unknown word: classes are about equally frequent in the test set."""
    return [*KEYWORDS, UNKNOWN_WORDS[speaker_index % len(UNKNOWN_WORDS)]]


def _name_between(low: float, high: float, rng: np.random.Generator) -> str:
    """A speaker's name with a position between two fractions."""
    while True:
        name = f"{rng.integers(2**32):08x}"
        if low <= hash_fraction(name) < high:
            return name
