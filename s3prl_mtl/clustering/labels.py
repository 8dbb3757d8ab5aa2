"""Cluster the frames of audio, and write the cluster of each frame as its label."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_mtl.clustering.audio import AudioList
from s3prl_mtl.clustering.features import FrameFeatures, HiddenLayer, digest, features_of
from s3prl_mtl.clustering.kmeans import Centers, fit_centers, read_centers
from s3prl_mtl.data import SAMPLE_RATE
from s3prl_mtl.data.unit_labels import read_dictionary, write_dictionary, write_km, write_tsv
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import atomic_path, remove_partials
from s3prl_mtl.fileio.paths import require_absent

logger = logging.getLogger(__name__)

CENTERS = "centers.npz"
DICTIONARY = "dict.km.txt"

Progress = Callable[[str, int, int], object]
"""Called with the name of a pass over the audio, the files done, and its number of files."""


def _silent(name: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Fit:
    """Settings of k-means.

    Args:
        clusters: their number.
        fraction: of the files whose frames are clustered.
        seed: of the choice and order of files, and of k-means.
        buffer_bytes: of the frames in memory.
    """

    clusters: int = 100
    fraction: float = 1.0
    seed: int = 0
    buffer_bytes: int = 2**30


def check_outputs(out: Path, split: str, *, fits: bool) -> None:
    """Check that no file exists that labelling a split writes.

    Args:
        out: their folder.
        split: its name.
        fits: whether centres are found, too.

    Raises:
        UserError: one exists, or the name of the split is not that of a file.
    """
    if not split or Path(split).name != split:
        raise UserError(
            f"{split!r} cannot be the name of a file.",
            where=f"--split {split}",
            fix="Give a name such as train.",
            code="invalid-name",
        )
    if fits and (out / CENTERS).exists() and not list(out.glob("*.km")):
        raise UserError(
            f"{out} has centres, but no labels: labelling was interrupted, or is in progress.",
            where=str(out),
            fix=f"Label the same audio with them: --centers {out / CENTERS} in place of the other "
            "flags of k-means. Or remove the file.",
            code="file-exists",
        )
    names = [f"{split}.tsv", f"{split}.km", *([CENTERS, DICTIONARY] if fits else [])]
    for path in (out / name for name in names):
        require_absent(
            path,
            where=str(out),
            fix="Name another folder, or remove the file. To label another split with the same "
            f"clusters: --centers {out / CENTERS} --split NAME.",
        )


def settings_of(name: str, features: FrameFeatures, upstream: dict[str, Any]) -> dict[str, Any]:
    """The settings of centres that labels of another split must share, plain JSON.

    Args:
        name: of the features, such as `layer:6`.
        features: of the waveforms.
        upstream: where the encoder came from.
    """
    settings: dict[str, Any] = {"features": name, "label_rate": features.rate}
    if isinstance(features, HiddenLayer):
        settings |= {"upstream": upstream, "encoder": digest(features.upstream)}
    return settings


def find_centers(
    audio: AudioList,
    features: FrameFeatures,
    fit: Fit,
    settings: dict[str, Any],
    progress: Progress = _silent,
) -> Centers:
    """Cluster the frames of a share of the files.

    Raises:
        UserError: the audio cannot be read, or has too few frames.
    """
    audio = audio.at_least(features.minimum_samples)
    order = np.random.default_rng(fit.seed).permutation(len(audio.files))
    count = max(1, round(fit.fraction * len(order)))
    chosen = order[:count].tolist()
    frames = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal frames
        for done, utterance in enumerate(features_of(audio, chosen, features), 1):
            progress("clustering", done, count)
            frames += len(utterance)
            yield utterance

    found = fit_centers(counted(), fit.clusters, buffer_bytes=fit.buffer_bytes, seed=fit.seed)
    made_with = {
        "clusters": fit.clusters,
        "fraction": fit.fraction,
        "seed": fit.seed,
        "frames": frames,
    }
    return Centers(found, {**settings, **made_with})


def check_centers(path: Path, settings: dict[str, Any], out: Path) -> Centers:
    """Read centres, and check that they are of the same features and of the labels in a folder.

    Args:
        path: of the centres.
        settings: see :func:`settings_of`.
        out: the folder of the labels, which may have centres.

    Raises:
        UserError: they are of other features or another encoder, or differ from those in `out`.
    """
    centers = read_centers(path)
    if (out / CENTERS).is_file():
        present = read_centers(out / CENTERS).centers
        if not np.array_equal(centers.centers, present):
            raise UserError(
                "The folder contains labels of other cluster centres.",
                where=f"--centers {path}, {out / CENTERS}",
                fix="Name another folder, or label with its own centres: "
                f"--centers {out / CENTERS}.",
                code="conflicting-options",
            )
    for key, value in settings.items():
        if key != "upstream" and centers.settings.get(key) != value:
            what = "another encoder" if key == "encoder" else f"{key} {centers.settings.get(key)}"
            made_with = [
                str(centers.settings[name])
                for name in ("features", "upstream")
                if name in centers.settings
            ]
            raise UserError(
                f"The cluster centres were made with {what}.",
                where=f"--centers {path}",
                fix="Give the features and the encoder that the centres were made with: "
                f"{', '.join(made_with)}.",
                code="checkpoint-mismatch",
            )
    return centers


def write_labels(
    out: Path,
    split: str,
    audio: AudioList,
    features: FrameFeatures,
    centers: Centers,
    progress: Progress = _silent,
) -> np.ndarray:
    """Write `<split>.tsv` and `<split>.km`, and `dict.km.txt` unless it exists.

    Files without a frame are left out, which is logged.

    Args:
        out: the folder, which exists.
        split: its name.
        audio: the files.
        features: of their waveforms.
        centers: of the clusters.
        progress: see `Progress`.

    Returns:
        the number of frames of each class, (K,).

    Raises:
        UserError: a file cannot be read, or the dictionary in the folder has other classes.
    """
    _check_dictionary(out / DICTIONARY, len(centers.centers))
    used = audio.at_least(features.minimum_samples)
    _log_short(len(audio.files) - len(used.files), features.minimum_samples)
    total = len(used.files)
    counts = np.zeros(len(centers.centers), dtype=np.int64)
    remove_partials(out, f"{split}.km")
    with atomic_path(out / f"{split}.km") as partial:
        with partial.open("w", encoding="ascii") as file:
            for done, found in enumerate(features_of(used, range(total), features), 1):
                labels = centers.assign(found)
                counts += np.bincount(labels, minlength=len(counts))
                write_km(file, labels)
                progress("labelling", done, total)
        # Labels last: their presence shows that the other files are complete.
        if not (out / DICTIONARY).exists():
            write_dictionary(out / DICTIONARY, counts.tolist())
        write_tsv(out / f"{split}.tsv", used.root, used.files)
    return counts


def _check_dictionary(path: Path, clusters: int) -> None:
    if path.exists() and read_dictionary(path) != [str(number) for number in range(clusters)]:
        raise UserError(
            f"The dictionary does not match {clusters} clusters.",
            where=str(path),
            fix="Write the labels to a folder of their own.",
            code="conflicting-options",
        )


def _log_short(count: int, samples: int) -> None:
    if count:
        logger.warning(
            "%d files are left out: they are shorter than a frame (%g ms).",
            count,
            1000 * samples / SAMPLE_RATE,
        )
