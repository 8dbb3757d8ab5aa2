"""Audio SNIPS: requests with slots, split by speaker.

    SNIPS/
      {train,valid,test}/<speaker>-snips-<split>-<n>.wav
      all.iob.snips.txt     <utterance> BOS WORDS... EOS<TAB>O slots... intent
      slots.txt             O, then one slot a line; no newline at the end

As in the original, speakers of other splits occur in every folder; SUPERB takes from each folder
only the speakers of its split.
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
from s3prl_mtl.data.mini_corpus.speakers import READERS, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import SLOT_VALUES, draw_slot_sentence

ROOT = "SNIPS"
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}


@dataclass(frozen=True)
class Amounts:
    """Requests per speaker of the split, and of one speaker of another split, in each folder."""

    own: dict[str, int]
    other: int


AMOUNTS = {
    "tiny": Amounts({"train": 2, "valid": 1, "test": 1}, other=1),
    "mini": Amounts({"train": 60, "valid": 15, "test": 20}, other=1),
}


def plan(size: str, seed: int) -> Plan:
    """The recordings, transcripts and slots of Audio SNIPS."""
    rng = generator(seed, ROOT)
    amounts = AMOUNTS[size]
    names = [name for group in SPEAKERS.values() for name in group]
    voices = dict(zip(names, draw_speakers(len(names), READERS, rng), strict=True))
    recordings: list[Recording] = []
    lines: list[str] = []
    for split, own_speakers in SPEAKERS.items():
        other_speaker = next(name for name in names if name not in own_speakers)
        for name in (*own_speakers, other_speaker):
            count = amounts.own[split] if name in own_speakers else amounts.other
            for number in range(count):
                words, slots, intent = draw_slot_sentence(rng)
                utterance = f"{name}-snips-{split}-{number}"
                lines.append(
                    " ".join([utterance, "BOS", *words, "EOS"])
                    + "\t"
                    + " ".join(["O", *slots, intent])
                )
                recordings.append(
                    Recording(
                        path=f"{ROOT}/{split}/{utterance}.wav",
                        tracks=((Phrase(" ".join(words).lower(), voices[name]),),),
                    )
                )

    def write_side_files(root: Path, _renderings: Renderings) -> None:
        write_lines(root / ROOT / "all.iob.snips.txt", lines)
        # s3prl's own preparation ends the file so; with a newline s3prl's heads have two outputs
        # more, for an empty slot.
        (root / ROOT / "slots.txt").write_text("\n".join(["O", *SLOT_VALUES]), encoding="utf-8")

    return Plan(recordings, write_side_files)
