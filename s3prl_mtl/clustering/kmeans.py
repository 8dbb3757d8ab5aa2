"""k-means over frames that do not fit into memory, and the file of its centres."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path

BATCH_FRAMES = 10_000

FORMAT = 1
"""Version of the file of centres."""


@dataclass(frozen=True)
class Centers:
    """The centres of clusters.

    Args:
        centers: float32 (K, D).
        settings: how they were made, plain JSON: `features`, `label_rate`, `encoder`, ...
    """

    centers: np.ndarray
    settings: dict[str, Any]

    def assign(self, features: np.ndarray) -> np.ndarray:
        """The nearest centre of each frame: features (frames, D) -> int32 (frames,)."""
        norms = np.square(self.centers).sum(axis=1)
        return np.argmin(norms - 2 * (features @ self.centers.T), axis=1).astype(np.int32)


def make_kmeans(clusters: int, seed: int, **settings: Any) -> Any:
    """scikit-learn's estimator with the settings of HuBERT's pre-training (fairseq's scripts).

    Args:
        clusters: their number.
        seed: of the initialisation and of the batches.
        settings: that replace those.
    """
    from sklearn.cluster import MiniBatchKMeans

    defaults = {
        "init": "k-means++",
        "n_init": 20,
        "batch_size": BATCH_FRAMES,
        "max_iter": 100,
        "tol": 0.0,
        "max_no_improvement": 100,
        "reassignment_ratio": 0.0,
        "compute_labels": False,
    }
    return MiniBatchKMeans(clusters, random_state=seed, **{**defaults, **settings})


def fit_centers(
    frames: Iterable[np.ndarray],
    clusters: int,
    *,
    buffer_bytes: int,
    seed: int,
) -> np.ndarray:
    """Cluster frames in memory that does not depend on their number.

    Frames that fit into the buffer are clustered as scikit-learn's `fit` does, as fairseq clusters
    a sample. Of more frames, `fit` on the first buffer gives the initial centres; then one pass
    over all frames, shuffled within each buffer, updates them batch by batch (`partial_fit`), so
    that every frame counts once.

    Args:
        frames: float32 (frames, D) of each utterance, in random order.
        clusters: their number.
        buffer_bytes: of the frames in memory.
        seed: of the initialisation and of the order.

    Returns:
        float32 (clusters, D).

    Raises:
        UserError: there are fewer frames than clusters.
    """
    random = np.random.default_rng(seed)
    buffers = _buffers(frames, buffer_bytes)
    first = next(buffers, np.empty((0, 0), np.float32))
    if len(first) < clusters:
        raise UserError(
            f"{len(first)} frames cannot form {clusters} clusters.",
            where=f"--clusters {clusters}",
            fix="Give more audio, fewer clusters, or a larger --fraction or --memory.",
            code="invalid-value",
        )
    initial = make_kmeans(clusters, seed).fit(first)
    second = next(buffers, None)
    if second is None:
        return np.asarray(initial.cluster_centers_, dtype=np.float32)
    model = make_kmeans(clusters, seed, init=initial.cluster_centers_, n_init=1)
    for buffer in _drain([first, second], buffers):
        random.shuffle(buffer)
        for start in range(0, len(buffer), BATCH_FRAMES):
            model.partial_fit(buffer[start : start + BATCH_FRAMES])
    return np.asarray(model.cluster_centers_, dtype=np.float32)


def _buffers(frames: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The frames of several utterances together, of `size` bytes or little more."""
    held: list[np.ndarray] = []
    held_bytes = 0
    for utterance in frames:
        held.append(utterance)
        held_bytes += utterance.nbytes
        if held_bytes >= size:
            yield np.concatenate(held)
            held, held_bytes = [], 0
    if held:
        yield np.concatenate(held)


def _drain(first: list[np.ndarray], rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the first buffers, dropping each from the list, then the rest."""
    while first:
        yield first.pop(0)
    yield from rest


def write_centers(path: Path, centers: Centers) -> None:
    """Write a file of arrays (`.npz`): `centers`, and `settings` as JSON; atomically.

    Raises:
        OSError: the file cannot be written.
    """
    settings = json.dumps({"format": FORMAT, **centers.settings}, allow_nan=False)
    with atomic_path(path) as partial:
        np.savez(partial, centers=centers.centers, settings=np.array(settings))


def read_centers(path: str | os.PathLike[str]) -> Centers:
    """Read what :func:`write_centers` wrote; nothing in the file is executed.

    Raises:
        UserError: the file is missing, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            "The file of centres does not exist.",
            where=f"--centers {path}",
            fix="Give the centers.npz that `s3prl-mtl cluster` wrote.",
            code="file-missing",
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            centers, settings = arrays["centers"], json.loads(str(arrays["settings"][()]))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _not_centers(path) from error
    if (
        not isinstance(settings, Mapping)
        or settings.get("format") != FORMAT
        or centers.ndim != 2
        or not np.isfinite(centers).all()
    ):
        raise _not_centers(path)
    return Centers(centers.astype(np.float32), dict(settings))


def _not_centers(path: Path) -> UserError:
    return UserError(
        f"{path.name} is not a file of centres, or damaged.",
        where=f"--centers {path}",
        fix="Give the centers.npz that `s3prl-mtl cluster` wrote.",
        code="file-malformed",
    )
