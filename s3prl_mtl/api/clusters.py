"""Label frames of audio with clusters. The flags are in `s3prl_mtl/cli/cluster.py`."""

from __future__ import annotations

import inspect
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3prl_mtl.api.calls import Override, PathLike, Words, callable_from_python, listed, split_tasks
from s3prl_mtl.api.corpora import Show, progress_bars
from s3prl_mtl.api.run_inputs import split_override
from s3prl_mtl.clustering.kmeans import write_centers
from s3prl_mtl.clustering.labels import (
    CENTERS,
    Fit,
    check_centers,
    check_outputs,
    find_centers,
    settings_of,
    write_labels,
)
from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import showing_progress

if TYPE_CHECKING:
    from s3prl_mtl.clustering.audio import AudioList
    from s3prl_mtl.clustering.features import FrameFeatures
    from s3prl_mtl.upstreams import Upstream


@dataclass(frozen=True)
class FrameLabels:
    """Clusters of frames, in the files of fairseq.

    Attributes:
        files: the list of the files, `<split>.tsv`.
        labels: the labels, `<split>.km`.
        counts: the number of labels of each cluster.
        rate: labels per second.
    """

    files: Path
    labels: Path
    counts: np.ndarray
    rate: float


@callable_from_python
def cluster(
    out: PathLike,
    *,
    audio: PathLike | None = None,
    downstream: Words | None = None,
    data: PathLike | None = None,
    config: PathLike | Sequence[PathLike] = (),
    override: Override | None = None,
    cache_dir: PathLike | None = None,
    rescan: bool = False,
    split: str = "train",
    features: str | None = None,
    upstream: str | None = None,
    run: PathLike | None = None,
    upstream_ckpt: PathLike | None = None,
    device: str = "auto",
    centers: PathLike | None = None,
    clusters: int = 100,
    fraction: float = 1.0,
    memory: int = 1024,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: bool | None = False,
) -> FrameLabels:
    """Label frames of audio with clusters, for HuBERT's pre-training: the command `cluster`.

    Args:
        out: folder of the labels.
        audio: a folder, or a list of fairseq (`.tsv`); or give `downstream`.
        downstream: the training audio of tasks.
        data: folder of the corpora of these tasks.
        config: YAML files or packaged settings of the tasks.
        override: settings of the tasks by dotted key, or the text of `-o`.
        cache_dir: folder of downloads and scanned corpora.
        rescan: list the corpora even if their folders have not changed.
        split: the name of the files.
        features: `mfcc`, or `layer:N`, a hidden state of the encoder.
        upstream: the encoder, such as `hubert`.
        run: the encoder of a run.
        upstream_ckpt: the checkpoint of the encoder.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        centers: label with these centres; nothing is clustered.
        clusters: their number.
        fraction: of the files to cluster.
        memory: MiB of frames at once.
        seed: of the clusters.
        trust_remote_code: execute modelling code of the repository of the encoder.
        progress: show progress bars; None on a terminal only.

    Returns:
        the files and the counts.

    Raises:
        UserError: an argument is wrong, an output exists, or audio or encoder cannot be used.
    """
    arguments = Namespace(**locals())
    if (audio is None) == (downstream is None):
        raise UserError(
            "Give the audio, or tasks.",
            where="--audio, -d",
            code="missing-option" if audio is None else "conflicting-options",
        )
    for name in ("audio", "run", "centers"):
        value = getattr(arguments, name)
        setattr(arguments, name, None if value is None else Path(value))
    with showing_progress(progress), progress_bars() as show:
        return _cluster(arguments, Path(out), show)


def _cluster(arguments: Namespace, out: Path, show: Show) -> FrameLabels:
    _check_numbers(arguments)
    check_outputs(out, arguments.split, fits=arguments.centers is None)
    name, features, origin = _features(arguments)
    settings = settings_of(name, features, origin)
    known = check_centers(arguments.centers, settings, out) if arguments.centers else None
    audio = _audio(arguments, show)
    if known is None:
        fit = Fit(
            arguments.clusters,
            arguments.fraction,
            arguments.seed,
            arguments.memory * 2**20,
        )
        centers = find_centers(audio, features, fit, settings, show)
    else:
        centers = known
    out.mkdir(parents=True, exist_ok=True)
    if not (out / CENTERS).exists():
        # Finding them takes longest: with the file, interrupted labelling can be repeated.
        write_centers(out / CENTERS, centers)
    counts = write_labels(out, arguments.split, audio, features, centers, show)
    stem = out / arguments.split
    return FrameLabels(
        stem.with_name(f"{stem.name}.tsv"), stem.with_name(f"{stem.name}.km"), counts, features.rate
    )


def _check_numbers(arguments: Namespace) -> None:
    valid = {
        "--clusters": arguments.clusters >= 1,
        "--fraction": 0 < arguments.fraction <= 1,
        "--memory": arguments.memory >= 1,
        "--seed": 0 <= arguments.seed < 2**32,
    }
    for flag, is_valid in valid.items():
        if not is_valid:
            value = getattr(arguments, flag.removeprefix("--"))
            raise UserError(
                f"{value} is outside the range of {flag}.",
                where=f"{flag} {value}",
                fix="Give a positive number; of --fraction at most 1.",
                code="invalid-value",
            )


def _audio(arguments: Namespace, show: Show) -> AudioList:
    from s3prl_mtl.clustering.audio import listed as listed_audio
    from s3prl_mtl.clustering.audio import training_audio

    if arguments.audio is not None:
        if not arguments.audio.exists():
            raise UserError(
                "There is no such folder or list.",
                where=f"--audio {arguments.audio}",
                code="file-missing",
            )
        return listed_audio(arguments.audio, lambda done, total: show("listing", done, total))
    from s3prl_mtl.config import build_config, parse_tasks
    from s3prl_mtl.data.corpus_cache import forget_listings

    names = parse_tasks(",".join(split_tasks(arguments.downstream)), flag="-d")
    flags = {"downstream": names, "data": arguments.data, "cache_dir": arguments.cache_dir}
    given = {key: value for key, value in flags.items() if value is not None}
    overrides, changes = split_override(arguments.override)
    config = build_config(listed(arguments.config), given | changes, overrides)
    if arguments.rescan:
        forget_listings(arguments.cache_dir)
    return training_audio(config, names)


def _features(arguments: Namespace) -> tuple[str, FrameFeatures, dict[str, Any]]:
    """The features by name, their computation, and where the encoder comes from.

    With `--centers`, features and encoder are by default those of the centres.
    """
    from s3prl_mtl.clustering.features import MFCC, HiddenLayer, Mfcc, parse_features
    from s3prl_mtl.clustering.kmeans import read_centers
    from s3prl_mtl.training.device import pick_device

    made_with = read_centers(arguments.centers).settings if arguments.centers else {}
    name = arguments.features or str(made_with.get("features", MFCC))
    layer = parse_features(name)
    given = {
        "upstream": arguments.upstream,
        "ckpt": arguments.upstream_ckpt and os.fspath(arguments.upstream_ckpt),
        "run": arguments.run and str(arguments.run),
    }
    origin = {key: value for key, value in given.items() if value is not None}
    if layer is None:
        if origin:
            raise UserError(
                "MFCC need no encoder.",
                where="-u, -k, --run",
                fix="Add --features layer:N.",
                code="conflicting-options",
            )
        return name, Mfcc(), {}
    origin = origin or dict(made_with.get("upstream") or {})
    if not {"upstream", "run"} & origin.keys():
        raise UserError(
            "Hidden states need an encoder.",
            where=f"--features {name}",
            fix="Name it: -u hubert, -u hubert -k FILE, or --run RUN.",
            code="missing-option",
        )
    trust = arguments.trust_remote_code
    upstream = _upstream(origin, arguments.cache_dir, trust).to(pick_device(arguments.device))
    return name, HiddenLayer(upstream.eval(), layer), origin


def _upstream(origin: dict[str, Any], cache_dir: str | None, trust: bool) -> Upstream:
    from s3prl_mtl.export.saved_run import SavedRun
    from s3prl_mtl.registry.plugins import find_upstream
    from s3prl_mtl.upstreams import load_upstream

    if "run" in origin:
        saved = SavedRun.open(Path(origin["run"]), trust)
        if saved.kind is None:
            raise UserError(
                "Only its plugin can build the encoder of the run.",
                where=f"--run {origin['run']}",
                fix=f"Give it by name: -u {saved.upstream_name}.",
                code="not-supported",
            )
        return saved.upstream()
    factory = find_upstream(origin["upstream"])
    # Only upstreams that download take the cache.
    takes_cache = factory is None or "cache_dir" in inspect.signature(factory).parameters
    options: dict[str, Any] = {"cache_dir": cache_dir} if cache_dir and takes_cache else {}
    if trust:
        options["trust_remote_code"] = True
    return load_upstream(origin["upstream"], origin.get("ckpt"), **options)
