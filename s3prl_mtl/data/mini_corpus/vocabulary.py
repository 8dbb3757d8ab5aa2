"""Sentences, pronunciations, intents and slots of the mini corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Pronunciations in ARPABET with stress, as in the lexicon of LibriSpeech (OpenSLR 11).
DETERMINERS = {"THE": "DH AH0", "A": "AH0", "MY": "M AY1", "HIS": "HH IH1 Z"}
ADJECTIVES = {
    "RED": "R EH1 D",
    "BLUE": "B L UW1",
    "GREEN": "G R IY1 N",
    "OLD": "OW1 L D",
    "NEW": "N UW1",
    "BIG": "B IH1 G",
    "COLD": "K OW1 L D",
    "YELLOW": "Y EH1 L OW0",
}
NOUNS = {
    "DOG": "D AO1 G",
    "CAT": "K AE1 T",
    "HOUSE": "HH AW1 S",
    "DOOR": "D AO1 R",
    "TREE": "T R IY1",
    "BIRD": "B ER1 D",
    "BOAT": "B OW1 T",
    "HORSE": "HH AO1 R S",
    "RIVER": "R IH1 V ER0",
    "WATER": "W AO1 T ER0",
    "TABLE": "T EY1 B AH0 L",
    "WINDOW": "W IH1 N D OW0",
    "MOTHER": "M AH1 DH ER0",
    "TEACHER": "T IY1 CH ER0",
}
PRONOUNS = {"I": "AY1", "WE": "W IY1", "SHE": "SH IY1", "THEY": "DH EY1"}
TRANSITIVE_VERBS = {
    "SAW": "S AO1",
    "TOOK": "T UH1 K",
    "FOUND": "F AW1 N D",
    "LIKED": "L AY1 K T",
    "OPENED": "OW1 P AH0 N D",
    "HELD": "HH EH1 L D",
    "LOST": "L AO1 S T",
}
INTRANSITIVE_VERBS = {
    "RAN": "R AE1 N",
    "FELL": "F EH1 L",
    "CAME": "K EY1 M",
    "WAITED": "W EY1 T AH0 D",
}
ADVERBS = {"AGAIN": "AH0 G EH1 N", "TODAY": "T AH0 D EY1", "SLOWLY": "S L OW1 L IY0"}

PRONUNCIATIONS = (
    DETERMINERS | ADJECTIVES | NOUNS | PRONOUNS | TRANSITIVE_VERBS | INTRANSITIVE_VERBS | ADVERBS
)

_PATTERNS = (
    (PRONOUNS, TRANSITIVE_VERBS, DETERMINERS, NOUNS),
    (PRONOUNS, TRANSITIVE_VERBS, DETERMINERS, ADJECTIVES, NOUNS),
    (DETERMINERS, NOUNS, INTRANSITIVE_VERBS),
    (DETERMINERS, ADJECTIVES, NOUNS, INTRANSITIVE_VERBS),
    (DETERMINERS, NOUNS, INTRANSITIVE_VERBS, ADVERBS),
)


def draw_sentences(count: int, rng: np.random.Generator, *, shortest: int = 3) -> list[str]:
    """Distinct sentences of `shortest` to five words, in upper case."""
    patterns = [pattern for pattern in _PATTERNS if len(pattern) >= shortest]
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        pattern = patterns[int(rng.integers(len(patterns)))]
        sentences[" ".join(pick(list(words), rng) for words in pattern)] = None
    return list(sentences)


def pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    """A uniformly random choice."""
    return choices[int(rng.integers(len(choices)))]


KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN_WORDS = ("bed", "bird", "cat", "dog", "happy", "house")


@dataclass(frozen=True)
class Intent:
    """An intent of Fluent Speech Commands, and commands that express it."""

    action: str
    object: str
    location: str
    phrasings: tuple[str, ...]


INTENTS = (
    Intent("change language", "none", "none", ("Change language", "Switch the language")),
    Intent("change language", "Chinese", "none", ("Set my language to Chinese", "Use Chinese")),
    Intent("change language", "German", "none", ("Set my language to German", "Use German")),
    Intent("activate", "lights", "none", ("Turn on the lights", "Lights on")),
    Intent("activate", "lights", "kitchen", ("Turn on the kitchen lights", "Kitchen on")),
    Intent("activate", "lights", "bedroom", ("Turn on the bedroom lights", "Bedroom on")),
    Intent("activate", "music", "none", ("Play the music", "Put on the music")),
    Intent("deactivate", "lights", "none", ("Turn off the lights", "Lights off")),
    Intent("deactivate", "lights", "kitchen", ("Turn off the kitchen lights", "Kitchen off")),
    Intent("deactivate", "lights", "bedroom", ("Turn off the bedroom lights", "Bedroom off")),
    Intent("deactivate", "music", "none", ("Stop the music", "Pause music")),
    Intent("increase", "volume", "none", ("Make it louder", "Turn the volume up")),
    Intent("increase", "heat", "none", ("Make it warmer", "Turn the heat up")),
    Intent("decrease", "volume", "none", ("That is too loud", "Turn the volume down")),
    Intent("decrease", "heat", "none", ("It is too hot in here", "Turn the heat down")),
    Intent("bring", "newspaper", "none", ("Bring me the newspaper", "Get me the newspaper")),
    Intent("bring", "juice", "none", ("Bring me some juice", "Get me some juice")),
    Intent("bring", "shoes", "none", ("Bring me my shoes", "Get me my shoes")),
)

SLOT_VALUES = {
    "artist": ("MILES DAVIS", "NINA SIMONE", "BOB DYLAN", "DAVID BOWIE"),
    "city": ("LONDON", "PARIS", "TOKYO", "BOSTON", "DENVER"),
    "object_name": ("MOBY DICK", "WAR AND PEACE", "BLUE MOON", "SILENT RIVER"),
    "party_size_number": ("TWO", "THREE", "SIX"),
    "playlist": ("ROAD TRIP", "HAPPY DAYS", "PARTY TIME", "JAZZ CLUB"),
    "rating_value": ("ONE", "FOUR", "FIVE"),
    "timeRange": ("TODAY", "TOMORROW", "TONIGHT"),
}

# Sentences by intent; a word in braces is replaced with a value of that slot.
SLOT_CARRIERS = {
    "AddToPlaylist": ("ADD THIS SONG TO {playlist}", "ADD {artist} TO {playlist}"),
    "BookRestaurant": ("BOOK A TABLE IN {city} FOR {party_size_number}",),
    "GetWeather": ("WILL IT RAIN IN {city} {timeRange}", "WEATHER IN {city} {timeRange}"),
    "PlayMusic": ("PLAY SOME MUSIC BY {artist}", "PLAY {artist}"),
    "RateBook": ("GIVE {object_name} {rating_value} STARS",),
    "SearchCreativeWork": ("FIND THE BOOK {object_name}",),
}


def draw_slot_sentence(rng: np.random.Generator) -> tuple[list[str], list[str], str]:
    """A random request: words, slot of each word (`O`: none), and intent."""
    intent = pick(list(SLOT_CARRIERS), rng)
    words: list[str] = []
    slots: list[str] = []
    for token in pick(SLOT_CARRIERS[intent], rng).split():
        slot = token.strip("{}")
        value = pick(SLOT_VALUES[slot], rng).split() if token.startswith("{") else [token]
        words += value
        slots += [slot if token.startswith("{") else "O"] * len(value)
    return words, slots, intent
