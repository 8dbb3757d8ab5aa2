"""Files whose samples cannot be speech in [-1, 1] are skipped, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_mtl.data import load_cuts
from tests.mistakes import user_error

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
QUIET = np.random.default_rng(1).uniform(-1e-4, 1e-4, 8000)
PAUSE = np.concatenate([np.zeros(7000), NOISE[:1000]])

UNUSABLE = {
    "integers as float": (np.round(NOISE * 32768), "FLOAT"),
    "8-bit integers as float": (np.round(NOISE * 128), "FLOAT"),
    "24-bit integers as double": (np.round(NOISE * 2**23), "DOUBLE"),
    "silence": (np.zeros(8000), "PCM_16"),
    "silence in two channels": (np.zeros((8000, 2)), "PCM_16"),
    "opposite channels": (np.stack([NOISE, -NOISE], axis=1), "PCM_16"),
    "almost opposite channels": (np.stack([NOISE, -0.999 * NOISE], axis=1), "FLOAT"),
    "a constant": (np.full(8000, 0.1), "PCM_16"),
    "8-bit silence": (np.zeros(8000), "PCM_U8"),
    "integers divided twice": (np.round(NOISE * 32768) / 32768**2, "FLOAT"),
    "integers cut to 1": (np.clip(np.round(NOISE * 32768), -1, 1), "PCM_16"),
    "three channels that cancel": (np.stack([NOISE, NOISE, -2 * NOISE], axis=1) / 2, "PCM_16"),
    "infinite outside of what is probed": (
        np.where(np.arange(8000) == 100, np.inf, NOISE),
        "FLOAT",
    ),
    "not a number": (np.where(np.arange(8000) == 7999, np.nan, NOISE), "FLOAT"),
}
USABLE = {
    "noise": (NOISE, "PCM_16"),
    "quiet": (QUIET, "FLOAT"),
    "a long pause": (PAUSE, "PCM_16"),
    "one step of 16 bits": (np.where(np.arange(8000) % 2, 2.0**-15, 0), "PCM_16"),
    "a third at full scale": (np.where(np.arange(8000) % 3, NOISE, 1.0), "PCM_16"),
    "a few peaks above 1": (np.where(np.arange(8000) % 400 == 0, 1.5, NOISE), "FLOAT"),
    "one silent channel": (np.stack([NOISE, 0 * NOISE], axis=1), "PCM_16"),
    "two independent channels": (np.stack([NOISE, NOISE[::-1]], axis=1), "PCM_16"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_samples_are_skipped_and_listed(name: str, listed_corpus, tmp_path: Path):
    corpus = listed_corpus(150)
    samples, subtype = UNUSABLE[name]
    soundfile.write(corpus.root / "u000.wav", samples, 16_000, subtype=subtype)
    cuts = load_cuts(corpus, "train", tmp_path / "cache")
    assert len(cuts) == 149
    (source,) = (tmp_path / "cache").glob("manifests/*/source.json")
    (skipped,) = json.loads(source.read_text())["splits"]["train"]["skipped"]
    assert skipped.startswith(f"{corpus.root / 'u000.wav'}: ")


@pytest.mark.parametrize("name", USABLE)
def test_usable_samples_are_kept(name: str, listed_corpus, tmp_path: Path):
    corpus = listed_corpus(3)
    samples, subtype = USABLE[name]
    soundfile.write(corpus.root / "u000.wav", samples, 16_000, subtype=subtype)
    assert len(load_cuts(corpus, "train", tmp_path / "cache")) == 3


def test_a_corpus_of_integers_stored_as_float_is_refused(listed_corpus, tmp_path: Path):
    corpus = listed_corpus(3)
    for path in corpus.root.glob("*.wav"):
        soundfile.write(path, np.round(NOISE * 32768), 16_000, subtype="FLOAT")
    with user_error("corpus-incomplete", where=r"3 of 3 .*\(peak 16\d\d\d\)"):
        load_cuts(corpus, "train", tmp_path / "cache")
