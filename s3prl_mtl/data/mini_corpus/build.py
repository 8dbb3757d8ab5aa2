"""Building the mini corpus: all nine layouts, in parallel, complete or not there."""

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
VERSION = 1  # to be raised whenever the same size and seed come to give other bytes
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

    The same size and seed give the same bytes, whatever `jobs` is. The corpus is built in
    `<directory>.partial` and renamed when complete. A folder that already holds this very corpus
    is left as it is. Worker processes import the caller's main module, so a script calls this
    under `if __name__ == "__main__":`.

    Args:
        directory: where to; it gets `LibriSpeech`, `SNIPS`, ... and `mini_corpus.json`.
        size: `tiny` for tests (seconds to make), `mini` to learn something from (minutes).
        seed: not negative; another seed gives other speakers and sentences.
        jobs: worker processes; None: one for each usable core.
        progress: called with (recordings done, recordings in all).

    Raises:
        UserError: espeak-ng is missing, the size is unknown, the seed is negative, or
            `directory` holds something else or cannot be written.
    """
    if size not in get_args(Size):
        raise UserError(
            f"There is no mini corpus of size {size!r}.",
            where="size",
            fix=nearest(str(size), list(get_args(Size))),
        )
    if seed < 0:
        raise UserError(f"The seed is {seed}.", where="seed", fix="Give one that is 0 or more.")
    target = Path(os.path.abspath(directory))
    identity: Identity = {
        "format": "s3prl_mtl mini corpus",
        "version": VERSION,
        "size": size,
        "seed": seed,
    }
    if _holds(target, identity):
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
            fix="Choose a folder that can be written to, on a disk with room.",
        ) from error


def _holds(target: Path, identity: Identity) -> bool:
    """Whether the corpus is there already; an error if something else is in its place."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == identity:
        return True
    what = (
        "holds files that are no mini corpus"
        if found is None
        else "holds another mini corpus: " + ", ".join(f"{k} {v}" for k, v in found.items())
    )
    raise UserError(
        f"The folder for the mini corpus {what}.",
        where=str(target),
        fix="Give a folder that does not exist yet, or remove this one.",
    )


def _start_over(folder: Path, identity: Identity) -> None:
    """An empty folder with the identity file; what an interrupted run left there is removed."""
    if folder.exists():
        if not (folder / IDENTITY_FILE).is_file():
            raise UserError(
                "The folder in which the mini corpus would be built holds something else.",
                where=str(folder),
                fix="Remove it, or give another folder for the corpus.",
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
    # Fresh processes: espeak-ng must be theirs alone, and forking is unsafe beside threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            rendered = pool.map(partial(render, root, seed), recordings, chunksize=_CHUNK)
            for done, rendering in enumerate(rendered, 1):
                renderings[rendering.path] = rendering
                if progress is not None:
                    progress(done, len(recordings))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # but wait for what is being written
            raise
    for plan in plans:
        plan.write_side_files(root, renderings)


def _usable_cores() -> int:
    affinity: Callable[[int], Sequence[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
