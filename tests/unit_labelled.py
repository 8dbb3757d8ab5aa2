"""Lists and labels for `ssl`, of the utterances of the mini corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

CLASSES = 8
SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


def write_unit_labels(
    folder: Path, corpus: Path, label_sets: tuple[str, ...] = ("km",), rate: int = 50
) -> Path:
    """Write the files of `ssl` for LibriSpeech in a mini corpus.

    The class of a frame is its level in decibels, divided into equal parts: something that can be
    learned in a few steps.

    Args:
        folder: for the files; created.
        corpus: the mini corpus.
        label_sets: endings; the classes of the second one are in the opposite order.
        rate: labels per second.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = (corpus / "LibriSpeech").resolve()
    for name in label_sets:
        lines = (f"{number} 1\n" for number in range(CLASSES))
        (folder / f"dict.{name}.txt").write_text("".join(lines))
    for split, subset in SPLITS.items():
        files = sorted((root / subset).rglob("*.flac"))
        listed, labelled = [str(root)], []
        for file in files:
            samples, _ = soundfile.read(file, dtype="float32")
            listed.append(f"{file.relative_to(root)}\t{len(samples)}")
            labelled.append(classes(samples, rate))
        (folder / f"{split}.tsv").write_text("\n".join(listed) + "\n")
        for number, name in enumerate(label_sets):
            rows = [CLASSES - 1 - row if number else row for row in labelled]
            lines = (" ".join(map(str, row)) + "\n" for row in rows)
            (folder / f"{split}.{name}").write_text("".join(lines))
    return folder


def classes(samples: np.ndarray, rate: int) -> np.ndarray:
    """The class of each frame of 25 ms, at a rate."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, 400)[:: 16_000 // rate]
    level = 10 * np.log10(np.square(windows).mean(1) + 1e-6)
    return np.clip((level + 60) / 60 * CLASSES, 0, CLASSES - 1).astype(int)
