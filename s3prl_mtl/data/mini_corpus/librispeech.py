"""LibriSpeech: read sentences with disjoint speakers per subset, and a lexicon.

LibriSpeech/
  SPEAKERS.TXT                                  id | sex | subset | minutes | name
  librispeech-lexicon.txt                       WORD<TAB>ARPABET with stress
  <subset>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac
  <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.data.mini_corpus.recording import (
    Phrase,
    Plan,
    Recording,
    Renderings,
    generator,
    write_lines,
)
from s3prl_mtl.data.mini_corpus.speakers import DIVERSE, READERS, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import PRONUNCIATIONS, draw_sentences

ROOT = "LibriSpeech"


@dataclass(frozen=True)
class Subset:
    """Size of a subset; `other` subsets have accents and more noise."""

    name: str
    speakers: int
    sentences_each: int

    @property
    def other(self) -> bool:
        return self.name.endswith("other")


SUBSETS = {
    "tiny": (
        Subset("train-clean-100", 4, 7),
        Subset("dev-clean", 2, 3),
        Subset("dev-other", 1, 2),
        Subset("test-clean", 2, 3),
        Subset("test-other", 1, 2),
    ),
    "mini": (
        Subset("train-clean-100", 20, 28),
        Subset("dev-clean", 6, 10),
        Subset("dev-other", 4, 8),
        Subset("test-clean", 8, 10),
        Subset("test-other", 4, 8),
    ),
}


@dataclass(frozen=True)
class _Reader:
    number: int
    female: bool
    subset: str
    utterances: dict[str, str]  # utterance id -> sentence

    def folder(self) -> str:
        return f"{self.subset}/{self.number}/{self.chapter()}"

    def chapter(self) -> int:
        return 100_000 + self.number


def plan(size: str, seed: int) -> Plan:
    """The recordings and side files of LibriSpeech; no sentence is in two subsets."""
    rng = generator(seed, ROOT)
    subsets = SUBSETS[size]
    sentences = iter(draw_sentences(sum(s.speakers * s.sentences_each for s in subsets), rng))
    numbers = iter(sorted(rng.choice(8000, sum(s.speakers for s in subsets), replace=False) + 100))
    usual = sum(s.speakers for s in subsets if not s.other)
    unusual = sum(s.speakers for s in subsets if s.other)
    voices = {
        False: iter(draw_speakers(usual, READERS, rng)),
        True: iter(draw_speakers(unusual, DIVERSE, rng)),
    }
    readers: list[_Reader] = []
    recordings: list[Recording] = []
    for subset in subsets:
        for _ in range(subset.speakers):
            voice = next(voices[subset.other])
            reader = _Reader(int(next(numbers)), voice.female, subset.name, {})
            readers.append(reader)
            for index in range(subset.sentences_each):
                utterance = f"{reader.number}-{reader.chapter()}-{index:04d}"
                reader.utterances[utterance] = sentence = next(sentences)
                recordings.append(
                    Recording(
                        path=f"{ROOT}/{reader.folder()}/{utterance}.flac",
                        tracks=((Phrase(sentence.lower(), voice),),),
                        noise_db=-48.0 if subset.other else -58.0,
                    )
                )

    def write_side_files(root: Path, renderings: Renderings) -> None:
        rows = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
        for reader in readers:
            write_lines(
                root / ROOT / reader.folder() / f"{reader.number}-{reader.chapter()}.trans.txt",
                [f"{utterance} {sentence}" for utterance, sentence in reader.utterances.items()],
            )
            paths = [f"{ROOT}/{reader.folder()}/{name}.flac" for name in reader.utterances]
            minutes = sum(renderings[path].seconds for path in paths) / 60
            rows.append(
                f"{reader.number:<5}| {'F' if reader.female else 'M'} | {reader.subset:<17}"
                f"| {minutes:.2f}  | Reader {reader.number}"
            )
        write_lines(root / ROOT / "SPEAKERS.TXT", rows)
        write_lines(
            root / ROOT / "librispeech-lexicon.txt",
            [f"{word}\t{phones}" for word, phones in sorted(PRONUNCIATIONS.items())],
        )

    return Plan(recordings, write_side_files)
