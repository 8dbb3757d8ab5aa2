"""IEMOCAP: sessions of dialogues between two actors, with an emotion for each turn.

IEMOCAP_full_release/Session<1-5>/
  dialog/EmoEvaluation/<dialog>.txt      one block a turn: [start - end] turn emotion [V, A, D]
  dialog/transcriptions/<dialog>.txt     turn [start-end]: words
  sentences/wav/<dialog>/<turn>.wav
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.data.mini_corpus.recording import (
    Phrase,
    Plan,
    Prosody,
    Recording,
    Renderings,
    generator,
    write_lines,
)
from s3prl_mtl.data.mini_corpus.speakers import ACTORS, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import draw_sentences

ROOT = "IEMOCAP_full_release"
TURN_GAP_SECONDS = 0.5


@dataclass(frozen=True)
class Emotion:
    """An emotion.

    Args:
        code: its label.
        name: its name in the annotators' votes.
        prosody: its way of speaking.
        attributes: valence, activation and dominance, 1 to 5.
    """

    code: str
    name: str
    prosody: Prosody
    attributes: tuple[float, float, float]


_HAPPY = Prosody(rate=1.15, pitch=22, pitch_range=2.0, level_db=1, tilt_db=3)
EMOTIONS = {
    "neu": Emotion("neu", "Neutral", Prosody(), (2.5, 2.5, 2.5)),
    "hap": Emotion("hap", "Happiness", _HAPPY, (4.0, 3.0, 3.0)),
    "exc": Emotion("exc", "Excited", _HAPPY, (4.5, 4.0, 3.5)),
    "ang": Emotion(
        "ang",
        "Anger",
        Prosody(rate=1.35, pitch=4, pitch_range=1.3, level_db=6, tilt_db=12),
        (1.5, 4.0, 4.0),
    ),
    "sad": Emotion(
        "sad",
        "Sadness",
        Prosody(rate=0.7, pitch=-15, pitch_range=0.3, level_db=-5, tilt_db=-12),
        (2.0, 1.5, 2.0),
    ),
    "fru": Emotion("fru", "Frustration", Prosody(rate=1.1, level_db=3, tilt_db=3), (2.0, 3.0, 3.0)),
    "xxx": Emotion("xxx", "Other", Prosody(rate=0.9, pitch=5), (3.0, 2.5, 2.5)),
}

# The emotions of an actor's turns in one dialogue.
DIALOGS: dict[str, dict[str, tuple[str, ...]]] = {
    "tiny": {"impro01": ("neu", "hap", "ang", "sad", "fru")},
    "mini": {
        "impro01": ("neu", "ang", "sad", "hap", "fru", "neu", "exc", "sad", "ang"),
        "impro02": ("sad", "neu", "exc", "ang", "xxx", "neu", "hap", "ang", "sad"),
        "script01_1": ("ang", "hap", "neu", "sad", "neu", "exc", "fru", "ang", "sad"),
    },
}


@dataclass(frozen=True)
class _Turn:
    name: str
    emotion: Emotion
    sentence: str
    path: str


def plan(size: str, seed: int) -> Plan:
    """The recordings and annotations of IEMOCAP.

    Words are independent of the emotion; only the prosody expresses it.
    """
    rng = generator(seed, ROOT)
    voices = draw_speakers(10, ACTORS, rng)
    scenes = [
        (session, marked, scene, emotions)
        for session in range(1, 6)
        for marked in ("F", "M")  # which actor wears the motion-capture markers
        for scene, emotions in DIALOGS[size].items()
        if size != "tiny" or marked == "F"
    ]
    texts = iter(draw_sentences(sum(2 * len(scene[-1]) for scene in scenes), rng))
    recordings: list[Recording] = []
    dialogs: dict[tuple[int, str], list[_Turn]] = {}
    for session, marked, scene, emotions in scenes:
        dialog = f"Ses{session:02d}{marked}_{scene}"
        turns = dialogs[session, dialog] = []
        for number, code in enumerate(emotions):
            for actor in ("F", "M"):
                name = f"{dialog}_{actor}{number:03d}"
                path = f"{ROOT}/Session{session}/sentences/wav/{dialog}/{name}.wav"
                turn = _Turn(name, EMOTIONS[code], next(texts), path)
                turns.append(turn)
                voice = voices[2 * (session - 1) + (actor == "F")]
                phrase = Phrase(turn.sentence.lower(), voice, turn.emotion.prosody)
                recordings.append(Recording(path, ((phrase,),)))

    def write_side_files(root: Path, renderings: Renderings) -> None:
        for (session, dialog), turns in dialogs.items():
            labels, words = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
            start = 1.0
            for turn in turns:
                end = start + renderings[turn.path].seconds
                labels += _annotation(turn, start, end)
                words.append(f"{turn.name} [{start:08.4f}-{end:08.4f}]: {turn.sentence.title()}.")
                start = end + TURN_GAP_SECONDS
            folder = root / ROOT / f"Session{session}" / "dialog"
            write_lines(folder / "EmoEvaluation" / f"{dialog}.txt", labels)
            write_lines(folder / "transcriptions" / f"{dialog}.txt", words)

    return Plan(recordings, write_side_files)


def _annotation(turn: _Turn, start: float, end: float) -> list[str]:
    """A turn's block: the agreed label, three categorical votes, two attribute votes."""
    valence, activation, dominance = turn.emotion.attributes
    return [
        f"[{start:.4f} - {end:.4f}]\t{turn.name}\t{turn.emotion.code}\t"
        f"[{valence:.4f}, {activation:.4f}, {dominance:.4f}]",
        *(f"C-E{voter}:\t{turn.emotion.name};\t()" for voter in (2, 3, 4)),
        f"C-{turn.name[-4]}1:\t{turn.emotion.name};\t()",
        *(
            f"A-E{voter}:\tval {valence:.0f}; act {activation:.0f}; dom  {dominance:.0f};\t()"
            for voter in (3, 4)
        ),
        "",
    ]
