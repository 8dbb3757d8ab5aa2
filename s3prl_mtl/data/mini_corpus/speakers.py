"""The voices of the mini corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s3prl_mtl.data.mini_corpus.recording import Speaker


@dataclass(frozen=True)
class Population:
    """A distribution of voices.

    Args:
        accents: voices of espeak-ng.
        male: male variants of espeak-ng.
        female: female variants of espeak-ng.
        spread: relative range of vocal tracts, pitches and equalisations; 0 for none.
    """

    accents: tuple[str, ...]
    male: tuple[str, ...]
    female: tuple[str, ...]
    spread: float


# Variants that sound human and are reproducible
# (`caleb` and `Reed` depend on uninitialised memory in espeak-ng).
_MEN = (
    "m1",
    "m3",
    "m5",
    "m7",
    "Andy",
    "Denis",
    "Gene",
    "Lee",
    "Michael",
    "adam",
    "david",
    "john",
    "klatt3",
    "norbert",
    "quincy",
    "robert",
    "travis",
)
_WOMEN = (
    "f1",
    "f2",
    "f4",
    "f5",
    "Annie",
    "Andrea",
    "aunty",
    "belinda",
    "linda",
    "steph",
)
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029")

DIVERSE = Population(_ACCENTS, _MEN, _WOMEN, spread=1.0)
READERS = Population(("en-us",), ("m1", "m3", "m5", "m7"), ("f1", "f2", "f4"), spread=0.6)
ACTORS = Population(("en-us",), ("m1", "m3"), ("f1", "f4"), spread=0.4)


def draw_speakers(count: int, population: Population, rng: np.random.Generator) -> list[Speaker]:
    """Draw speakers with evenly spread voice parameters.

    Male and female alternate. All contiguous parts of the list have the same distribution, so
    held-out speakers are similar to, but different from, training speakers.
    """
    spread = population.spread
    male, female = rng.permutation(population.male), rng.permutation(population.female)
    places = np.stack([_even_places(count, rng) for _ in range(4)], axis=1)
    bands = ((350, 900), (1100, 2300), (2700, 5500))
    speakers = []
    for index, (tract, pitch, pitch_range, rate) in enumerate(places):
        is_female = index % 2 == 1
        variants = female if is_female else male
        speakers.append(
            Speaker(
                voice=f"{rng.choice(population.accents)}+{variants[index // 2 % len(variants)]}",
                female=is_female,
                pitch=float(50 + 25 * spread * pitch),
                pitch_range=float(50 + 20 * spread * pitch_range),
                words_per_minute=float(150 + 15 * rate),
                tract_scale=float(1 + 0.11 * spread * tract),
                resonances=tuple(
                    (float(rng.uniform(*band)), float(rng.uniform(-8, 8) * spread))
                    for band in bands
                ),
            )
        )
    return speakers


def _even_places(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` numbers in (-1, 1), one from each of `count` equal intervals, in random order."""
    return (rng.permutation(count) + rng.random(count)) / count * 2 - 1
