"""Libri2Mix for diarization: partly overlapping speech of two speakers, in Kaldi format.

Libri2Mix/{train,dev,test}/
  wav/<recording>.wav
  wav.scp     <recording> wav/<recording>.wav      relative to this folder
  segments    <utterance> <recording> <start> <end>
  utt2spk  spk2utt  reco2dur  rttm
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_mtl.data.mini_corpus.recording import (
    Phrase,
    Plan,
    Recording,
    Rendered,
    Renderings,
    Speaker,
    generator,
    write_lines,
)
from s3prl_mtl.data.mini_corpus.speakers import DIVERSE, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import draw_sentences

ROOT = "Libri2Mix"


@dataclass(frozen=True)
class Amounts:
    """Numbers of speakers and mixtures of a split."""

    speakers: int
    mixtures: int


AMOUNTS = {
    "tiny": {"train": Amounts(4, 4), "dev": Amounts(2, 2), "test": Amounts(2, 2)},
    "mini": {"train": Amounts(16, 120), "dev": Amounts(6, 20), "test": Amounts(6, 30)},
}


def plan(size: str, seed: int) -> Plan:
    """The mixtures and Kaldi files of Libri2Mix; no speaker is in two splits."""
    rng = generator(seed, ROOT)
    splits = AMOUNTS[size]
    voices = iter(draw_speakers(sum(a.speakers for a in splits.values()), DIVERSE, rng))
    texts = iter(draw_sentences(4 * sum(a.mixtures for a in splits.values()), rng))
    numbers = iter(sorted(rng.choice(8000, sum(a.speakers for a in splits.values()), False) + 100))
    mixtures: dict[str, list[tuple[Recording, list[int]]]] = {split: [] for split in splits}
    for split, amounts in splits.items():
        people = [(int(next(numbers)), next(voices)) for _ in range(amounts.speakers)]
        for index in range(amounts.mixtures):
            (one, voice_one), (two, voice_two) = (
                people[place] for place in rng.choice(len(people), 2, replace=False)
            )
            name = f"{one}-{index:04d}_{two}-{index:04d}"
            tracks = (
                _track(voice_one, [next(texts) for _ in range(2)], rng.uniform(0.0, 0.3), rng),
                _track(voice_two, [next(texts) for _ in range(2)], rng.uniform(0.6, 2.2), rng),
            )
            recording = Recording(f"{ROOT}/{split}/wav/{name}.wav", tracks)
            mixtures[split].append((recording, [one, one, two, two]))

    def write_side_files(root: Path, renderings: Renderings) -> None:
        for split, entries in mixtures.items():
            rendered = [(renderings[recording.path], speakers) for recording, speakers in entries]
            _write_kaldi(root / ROOT / split, rendered)

    return Plan([entry[0] for entries in mixtures.values() for entry in entries], write_side_files)


def _track(
    voice: Speaker, texts: list[str], start_seconds: float, rng: np.random.Generator
) -> tuple[Phrase, ...]:
    """Phrases of one speaker, separated by pauses."""
    pauses = [start_seconds, *rng.uniform(0.4, 1.6, len(texts) - 1)]
    return tuple(
        Phrase(text.lower(), voice, pause_seconds=float(pause))
        for text, pause in zip(texts, pauses, strict=True)
    )


def _write_kaldi(folder: Path, rendered: list[tuple[Rendered, list[int]]]) -> None:
    """Write Kaldi's files, sorted by their first column as Kaldi requires."""
    wav_scp, durations, segments, utt2spk = [], [], [], []
    rttm: dict[str, list[str]] = {}
    spk2utt: dict[str, list[str]] = defaultdict(list)
    for recording, speakers in rendered:
        name = Path(recording.path).stem
        wav_scp.append(f"{name} wav/{name}.wav")
        durations.append(f"{name} {recording.seconds:.4f}")
        turns = sorted(zip(recording.spans, speakers, strict=True))
        rttm[name] = [
            f"SPEAKER {name} 1 {start:.4f} {end - start:.4f} <NA> <NA> {speaker} <NA> <NA>"
            for (start, end), speaker in turns
        ]
        for (start, end), speaker in turns:
            utterance = f"{speaker}-{name}-{round(start * 1000):06d}"
            segments.append(f"{utterance} {name} {start:.4f} {end:.4f}")
            utt2spk.append(f"{utterance} {speaker}")
            spk2utt[str(speaker)].append(utterance)
    for file, lines in {
        "wav.scp": wav_scp,
        "reco2dur": durations,
        "segments": segments,
        "utt2spk": utt2spk,
        "spk2utt": [f"{speaker} {' '.join(sorted(utts))}" for speaker, utts in spk2utt.items()],
    }.items():
        write_lines(folder / file, sorted(lines))
    write_lines(folder / "rttm", [line for name in sorted(rttm) for line in rttm[name]])
