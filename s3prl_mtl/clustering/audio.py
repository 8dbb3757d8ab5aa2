"""The audio files to label: of a folder, a list, or the corpora of tasks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from s3prl_mtl.config import Config, resolve
from s3prl_mtl.data import SAMPLE_RATE, list_audio
from s3prl_mtl.data.unit_labels import AudioFiles, check_audio, read_tsv, samples_at_16k
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.training.build import build_expert
from s3prl_mtl.training.preflight import corpus_problems, raise_together

# The experts are built for their corpora; every head takes features of this size.
_WIDTH = 8
_FRAME_SAMPLES = 320

Progress = Callable[[int, int], object]
"""Called with the number of files done, and of all files."""


@dataclass(frozen=True)
class AudioList:
    """Audio files in a fixed order.

    Args:
        root: the folder that contains them.
        files: path relative to it, and number of samples at 16 kHz, of each file.
    """

    root: Path
    files: AudioFiles

    def at_least(self, samples: int) -> AudioList:
        """The files with so many samples."""
        return replace(self, files=[file for file in self.files if file[1] >= samples])


def listed(source: Path, progress: Progress = lambda done, total: None) -> AudioList:
    """The audio of a folder, or of a list in fairseq's format, by the headers of the files.

    Args:
        source: a folder, with all audio files below it; or a `.tsv` file.
        progress: see `Progress`.

    Raises:
        UserError: it does not exist, has no audio, or a file is missing, unreadable or of another
            length than the list says.
    """
    if source.is_dir():
        root, names = Path(os.path.abspath(source)), list_audio(source)
        files = []
        for done, name in enumerate(names, 1):
            files.append((name, samples_at_16k(root / name)))
            progress(done, len(names))
    else:
        root, files = read_tsv(source)
        for done, _ in enumerate(check_audio(source, root, files), 1):
            progress(done, len(files))
    if not files:
        raise UserError(
            "The folder has no audio files.",
            where=f"--audio {source}",
            fix="Name a folder with wav, flac, ogg, opus, mp3 or aiff files.",
            code="corpus-empty",
        )
    return AudioList(root, files)


def training_audio(config: Config, names: Sequence[str]) -> AudioList:
    """The union of the training audio of tasks: each file once, whole, in the order of paths.

    Args:
        config: of a run with the tasks; unresolved.
        names: of the tasks.

    Raises:
        UserError: a corpus cannot be read, or a task reads its data itself.
    """
    resolved = resolve(config)
    classes = {
        name: load_task(name, resolved.tasks[name].package, folder=resolved.tasks[name].folder)
        for name in names
    }
    problems = corpus_problems(resolved, classes)
    raise_together([mistake for found in problems.values() for mistake in found])
    samples: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, expert_class in classes.items():
            expert = build_expert(
                expert_class,
                resolved,
                name,
                Path(folder),
                upstream_dim=_WIDTH,
                upstream_rate=_FRAME_SAMPLES,
            )
            if not isinstance(expert, TaskExpert) or expert.has_own_loader:
                raise UserError(
                    f"{name} reads its data itself: its audio cannot be listed.",
                    where="-d",
                    fix="Leave it out, or give its folder: --audio DIR.",
                    code="not-supported",
                )
            split = resolved.tasks[name].train_split or expert.train_split
            columns = expert.cuts(split).columns("path", "num_samples", "sampling_rate")
            paths, counts, rates = (column.to_pylist() for column in columns.columns)
            at_16k = -(-np.array(counts) * SAMPLE_RATE // np.array(rates))
            samples |= zip(paths, at_16k.tolist(), strict=True)
    root = Path(os.path.commonpath([os.path.dirname(path) for path in samples]))
    return AudioList(
        root, [(os.path.relpath(path, root), samples[path]) for path in sorted(samples)]
    )
