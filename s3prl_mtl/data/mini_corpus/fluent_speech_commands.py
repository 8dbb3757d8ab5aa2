"""Fluent Speech Commands: spoken commands with an action, an object and a location.

fluent_speech_commands_dataset/
  data/{train,valid,test}_data.csv      ,path,speakerId,transcription,action,object,location
  data/speaker_demographics.csv
  wavs/speakers/<speaker>/<utterance>.wav
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_mtl.data.mini_corpus.recording import (
    Phrase,
    Plan,
    Recording,
    Renderings,
    generator,
    write_lines,
)
from s3prl_mtl.data.mini_corpus.speakers import READERS, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import INTENTS, Intent, pick

ROOT = "fluent_speech_commands_dataset"
HEADER = ["", "path", "speakerId", "transcription", "action", "object", "location"]
DEMOGRAPHICS = [
    "speakerId",
    "Self-reported fluency level ",
    "First Language spoken",
    "Current language used for work/school",
    "Gender",
    "ageRange",
]


@dataclass(frozen=True)
class Amounts:
    """Numbers of speakers of a split and commands per speaker."""

    speakers: int
    commands_each: int


AMOUNTS = {
    "tiny": {"train": Amounts(2, 18), "valid": Amounts(1, 4), "test": Amounts(1, 4)},
    "mini": {"train": Amounts(18, 30), "valid": Amounts(4, 15), "test": Amounts(6, 15)},
}


def plan(size: str, seed: int) -> Plan:
    """The recordings and tables of Fluent Speech Commands; no speaker is in two splits."""
    rng = generator(seed, ROOT)
    splits = AMOUNTS[size]
    voices = iter(draw_speakers(sum(a.speakers for a in splits.values()), READERS, rng))
    recordings: list[Recording] = []
    tables: dict[str, list[list[str]]] = {split: [] for split in splits}
    people: list[list[str]] = []
    for split, amounts in splits.items():
        intents = _in_turn(amounts.speakers * amounts.commands_each, rng)
        for index in range(len(intents)):
            if index % amounts.commands_each == 0:
                voice, speaker = next(voices), _name(10, rng)
                gender = "female" if voice.female else "male"
                people.append(
                    [speaker, "native", "English (United States)", "English", gender, "22-40"]
                )
            intent = intents[index]
            text = pick(intent.phrasings, rng)
            path = f"wavs/speakers/{speaker}/{_name(24, rng)}.wav"
            recordings.append(Recording(f"{ROOT}/{path}", ((Phrase(text.lower(), voice),),)))
            tables[split].append(
                [str(index), path, speaker, text, intent.action, intent.object, intent.location]
            )

    def write_side_files(root: Path, _renderings: Renderings) -> None:
        folder = root / ROOT / "data"
        for split, rows in tables.items():
            write_lines(folder / f"{split}_data.csv", _csv([HEADER, *rows]))
        write_lines(folder / "speaker_demographics.csv", _csv([DEMOGRAPHICS, *people]))

    return Plan(recordings, write_side_files)


def _in_turn(count: int, rng: np.random.Generator) -> list[Intent]:
    """`count` intents, all equally frequent, in random order."""
    order = [index % len(INTENTS) for index in range(count)]
    return [INTENTS[index] for index in rng.permutation(order)]


def _name(length: int, rng: np.random.Generator) -> str:
    letters = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
    return "".join(letters[index] for index in rng.integers(len(letters), size=length))


def _csv(rows: list[list[str]]) -> list[str]:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().splitlines()
