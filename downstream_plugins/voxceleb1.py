"""Read VoxCeleb1's folders, for `sid` and `sv`.

::

    dev/wav/<speaker>/<video>/<number>.wav     1211 speakers
    test/wav/<speaker>/<video>/<number>.wav      40 speakers

Utterances are named by their path below `wav`: `id10001/1zcIwhmdeo4/00001.wav`.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.data import Corpus, list_audio

PARTS = ("dev", "test")


def wav_folder(root: Path, part: str) -> Path:
    """The folder with the speakers of a part (`dev` or `test`)."""
    return root / part / "wav"


def locate_audio(root: Path) -> dict[str, Path]:
    """The file of every utterance; listing folders is faster than 150 000 look-ups.

    Raises:
        UserError: a folder cannot be listed.
    """
    located: dict[str, Path] = {}
    for part in PARTS:
        folder = wav_folder(root, part)
        if folder.is_dir():
            located.update((name, folder / name) for name in list_audio(folder))
    return located


def missing_audio_path(root: Path, name: str) -> Path:
    """The path to report for a listed utterance without a file."""
    return wav_folder(root, PARTS[0]) / name


def layout_problems(corpus: Corpus, root: Path) -> list[str]:
    """Problems with the folders."""
    missing = corpus.missing_folder(root, f"the unpacked {corpus.title}", "file_path")
    if missing:
        return missing
    expected = f"speakers of {corpus.title} (<id>/<video>/<number>.wav)"
    return [
        problem
        for part in PARTS
        for problem in corpus.missing_folder(wav_folder(root, part), expected, "file_path")
    ]


def speaker_of(name: str) -> str:
    """The speaker of an utterance."""
    return name.split("/", 1)[0]
