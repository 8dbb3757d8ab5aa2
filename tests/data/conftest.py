from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl.data import Corpus, Utterance

WriteAudio = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def write_audio() -> WriteAudio:
    """Writes a noise file of some duration, sample rate and channels."""

    def write(
        path: Path, seconds: float = 0.5, rate: int = 16_000, channels: int = 1, seed: int = 0
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (round(seconds * rate), channels)
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, shape)
        soundfile.write(path, noise, rate)
        return path

    return write


class ListedCorpus(Corpus):
    """The files of a folder, labelled by a text file `labels.txt` (`<file> <label>` a line)."""

    title = "Listed files"
    task = "listed"
    splits = ("train", "test")

    def __init__(self, root: Path) -> None:
        super().__init__({"root": root})
        self.root = root

    def problems(self) -> list[str]:
        return self.missing_folder(self.root, "files", "root")

    def utterances(self, split: str) -> list[Utterance]:
        self.check_split(split)
        lines = (self.root / "labels.txt").read_text().split("\n")
        pairs = [line.split() for line in lines if line]
        return [Utterance(name, self.root / name, {"class": label}) for name, label in pairs]

    def label_space(self) -> dict[str, Any]:
        return {"classes": []}


@pytest.fixture
def listed_corpus(tmp_path: Path, write_audio: WriteAudio) -> Callable[[int], ListedCorpus]:
    """A corpus of the given number of files: `u000.wav`, ..., labelled `c0`, `c1`, ... in turn."""

    def make(files: int) -> ListedCorpus:
        root = tmp_path / "listed"
        for i in range(files):
            write_audio(root / f"u{i:03d}.wav", seconds=0.1 + 0.01 * i, seed=i)
        lines = [f"u{i:03d}.wav c{i % 3}" for i in range(files)]
        (root / "labels.txt").write_text("\n".join(lines) + "\n")
        return ListedCorpus(root)

    return make
