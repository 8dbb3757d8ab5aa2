"""Build the mini corpus: all layouts, in parallel, atomically."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import soundfile

from s3prl_mtl.data.mini_corpus import (
    fluent_speech_commands,
    iemocap,
    libri2mix,
    librispeech,
    snips,
    speech_commands,
    voxceleb1,
)
from s3prl_mtl.data.mini_corpus.espeak import espeak_paths
from s3prl_mtl.data.mini_corpus.recording import Rendered
from s3prl_mtl.data.mini_corpus.rendering import render
from s3prl_mtl.errors import UserError, nearest

Size = Literal["tiny", "mini"]

LAYOUTS = (
    librispeech,
    speech_commands,
    fluent_speech_commands,
    voxceleb1,
    iemocap,
    snips,
    libri2mix,
)
IDENTITY_FILE = "mini_corpus.json"
Identity = dict[str, str | int]
VERSION = 3  # increment when the same size and seed give other bytes
_CHUNK = 8


def make_corpus(
    directory: str | os.PathLike[str],
    size: Size = "tiny",
    seed: int = 0,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Synthesise a small spoken corpus in the folder layouts of SUPERB's nine tasks.

    The same size and seed give the same bytes for any `jobs`. The corpus is built in
    `<directory>.partial` and renamed when complete; if `directory` already contains this corpus,
    nothing is done. Worker processes import the caller's main module, so a script must call this
    under `if __name__ == "__main__":`.

    Args:
        directory: destination of `LibriSpeech`, `SNIPS`, ... and `mini_corpus.json`.
        size: `tiny` for tests (takes seconds), `mini` for training (takes minutes).
        seed: non-negative; changes speakers and sentences.
        jobs: worker processes; default: one per usable core.
        progress: called with (recordings done, recordings in total).

    Raises:
        UserError: espeak-ng is missing, unknown size, negative seed, or `directory` contains
            something else or cannot be written.
    """
    if size not in get_args(Size):
        raise UserError(
            f"Unknown size of the mini corpus: {size!r}.",
            where="size",
            fix=nearest(str(size), list(get_args(Size))),
            code="unknown-name",
        )
    if seed < 0:
        raise UserError(
            f"The seed is negative: {seed}.",
            where=f"seed {seed}",
            fix="Use 0 or more.",
            code="invalid-value",
        )
    target = Path(os.path.abspath(directory))
    identity: Identity = {
        "format": "s3prl_mtl mini corpus",
        "version": VERSION,
        "size": size,
        "seed": seed,
    }
    if _exists(target, identity):
        return
    espeak_paths()  # fail before anything is written
    partial_target = target.with_name(target.name + ".partial")
    try:
        _start_over(partial_target, identity)
        _build(partial_target, size, seed, jobs or _usable_cores(), progress)
        partial_target.replace(target)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(
            f"The mini corpus cannot be written: {error}.",
            where=str(partial_target),
            fix="Choose a writable folder on a disk with free space.",
            code="file-unwritable",
        ) from error


def _exists(target: Path, identity: Identity) -> bool:
    """Whether the corpus already exists; an error if the folder contains something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == identity:
        return True
    content = "other files"
    if found is not None:
        content = "a mini corpus with " + ", ".join(f"{k} {v}" for k, v in found.items())
    raise UserError(
        "The folder for the mini corpus is not empty.",
        where=f"{target}, which contains {content}",
        fix="Use a new folder, or remove this one.",
        code="file-exists",
    )


def _start_over(folder: Path, identity: Identity) -> None:
    """Make a folder with only the identity file; remove the files of an interrupted run."""
    if folder.exists():
        if not (folder / IDENTITY_FILE).is_file():
            raise UserError(
                "The folder for building the mini corpus contains other files.",
                where=str(folder),
                fix="Remove it, or use another folder for the corpus.",
                code="file-exists",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / IDENTITY_FILE).write_text(json.dumps(identity) + "\n", encoding="utf-8")


def _build(
    root: Path,
    size: str,
    seed: int,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    plans = [layout.plan(size, seed) for layout in LAYOUTS]
    recordings = [recording for plan in plans for recording in plan.recordings]
    renderings: dict[str, Rendered] = {}
    # Spawned: each needs its own copy of espeak-ng, and forking is unsafe beside threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            rendered = pool.map(partial(render, root, seed), recordings, chunksize=_CHUNK)
            for done, rendering in enumerate(rendered, 1):
                renderings[rendering.path] = rendering
                if progress is not None:
                    progress(done, len(recordings))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for files being written
            raise
    for plan in plans:
        plan.write_side_files(root, renderings)


def _usable_cores() -> int:
    affinity: Callable[[int], Sequence[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
