"""VoxCeleb1: speakers with several videos each.

VoxCeleb1/
  dev/wav/<speaker>/<video>/<n>.wav         id10001, id10002, ...
  test/wav/<speaker>/<video>/<n>.wav        id10270, ... (at most id10309)
  iden_split.txt                            <1 train | 2 dev | 3 test> <speaker>/<video>/<n>.wav
  veri_test.txt  veri_test2.txt             <1 same | 0 other> <wav> <wav>, test speakers only
  veri_dev.txt                              the same of development speakers (not in the original)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
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
from s3prl_mtl.data.mini_corpus.speakers import DIVERSE, draw_speakers
from s3prl_mtl.data.mini_corpus.vocabulary import draw_sentences

ROOT = "VoxCeleb1"
FIRST_DEV, FIRST_TEST = 10001, 10270


@dataclass(frozen=True)
class Amounts:
    """Speakers, clips per video, and videos per code of the identification split (1, 2, 3)."""

    dev_speakers: int
    test_speakers: int
    clips: int
    dev_videos: tuple[int, int, int]
    test_videos: tuple[int, int, int]
    trials: int


AMOUNTS = {
    "tiny": Amounts(4, 2, 1, (2, 1, 1), (1, 1, 1), trials=12),
    "mini": Amounts(20, 8, 2, (8, 1, 2), (4, 1, 1), trials=600),
}


def plan(size: str, seed: int) -> Plan:
    """The recordings and lists of VoxCeleb1.

    Clips contain over two seconds of speech, the minimum for training verification. Each video has
    its own background noise and prosody, so that its clips are similar.
    """
    rng = generator(seed, ROOT)
    amounts = AMOUNTS[size]
    speakers = amounts.dev_speakers + amounts.test_speakers
    voices = draw_speakers(speakers, DIVERSE, rng)
    clips = amounts.clips * (
        amounts.dev_speakers * sum(amounts.dev_videos)
        + amounts.test_speakers * sum(amounts.test_videos)
    )
    texts = iter(draw_sentences(2 * clips, rng, shortest=4))
    recordings: list[Recording] = []
    codes: list[str] = []
    for index, voice in enumerate(voices):
        is_test = index >= amounts.dev_speakers
        first = FIRST_TEST - amounts.dev_speakers if is_test else FIRST_DEV
        videos = amounts.test_videos if is_test else amounts.dev_videos
        for code in (code for code, count in enumerate(videos, 1) for _ in range(count)):
            video = _video_name(rng)
            noise, noise_db = str(rng.choice(["pink", "brown", "white"])), rng.uniform(-58, -50)
            manner = Prosody(
                rate=rng.uniform(0.9, 1.05), pitch=rng.uniform(-4, 4), tilt_db=rng.uniform(-2, 2)
            )
            for clip in range(1, amounts.clips + 1):
                name = f"id{first + index}/{video}/{clip:05d}.wav"
                phrases = (
                    Phrase(next(texts).lower(), voice, manner),
                    Phrase(next(texts).lower(), voice, manner, pause_seconds=0.1),
                )
                folder = "test" if is_test else "dev"
                path = f"{ROOT}/{folder}/wav/{name}"
                recordings.append(Recording(path, (phrases,), noise, float(noise_db)))
                codes.append(f"{code} {name}")
    test_clips = [
        recording.path.removeprefix(f"{ROOT}/test/wav/")
        for recording in recordings
        if recording.path.startswith(f"{ROOT}/test/")
    ]
    trials = draw_trials(test_clips, amounts.trials, rng)
    # Of the videos that identification holds out: an evaluation reads few utterances.
    dev_clips = [name for code, name in map(str.split, codes) if code != "1"]
    dev_trials = draw_trials(sorted(set(dev_clips) - set(test_clips)), amounts.trials, rng)

    def write_side_files(root: Path, _renderings: Renderings) -> None:
        write_lines(root / ROOT / "iden_split.txt", codes)
        # In the original, veri_test2 is veri_test without a few wrong trials.
        write_lines(root / ROOT / "veri_test.txt", trials)
        write_lines(root / ROOT / "veri_test2.txt", trials)
        write_lines(root / ROOT / "veri_dev.txt", dev_trials)

    return Plan(recordings, write_side_files)


def draw_trials(clips: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """At most `count` distinct trials, half of them target trials between two videos."""
    same: list[str] = []
    other: list[str] = []
    for one, two in combinations(clips, 2):
        if one.split("/")[0] != two.split("/")[0]:
            other.append(f"0 {one} {two}")
        elif one.split("/")[1] != two.split("/")[1]:
            same.append(f"1 {one} {two}")
    half = min(count // 2, len(same), len(other))
    chosen = [kind[index] for kind in (same, other) for index in rng.permutation(len(kind))[:half]]
    return [chosen[index] for index in rng.permutation(len(chosen))]


def _video_name(rng: np.random.Generator) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return "".join(letters[index] for index in rng.integers(len(letters), size=11))
