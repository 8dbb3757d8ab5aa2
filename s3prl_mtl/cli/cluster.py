"""`cluster`: label the frames of audio with clusters, the targets of HuBERT's pre-training."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.cli.parser import add_rescan, add_trust
from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import MESSAGES, OUTPUT
from s3prl_mtl.training.signals import exit_on_signals

if TYPE_CHECKING:
    from s3prl_mtl.clustering.audio import AudioList
    from s3prl_mtl.clustering.features import FrameFeatures
    from s3prl_mtl.upstreams import Upstream

Show = Callable[[str, int, int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the labels")
    audio = parser.add_argument_group("audio")
    source = audio.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--audio", type=Path, metavar="PATH", help="a folder, or a list of fairseq (.tsv)"
    )
    source.add_argument(
        "-d", "--downstream", metavar="TASKS", help="the training audio of tasks: asr,pr,... or all"
    )
    audio.add_argument("--data", metavar="DIR", help="folder of the corpora (or $SUPERB_DATA)")
    audio.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    audio.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of the tasks")
    audio.add_argument("--cache_dir", metavar="DIR", help="downloads and scanned corpora")
    add_rescan(audio)
    audio.add_argument(
        "--split", default="train", metavar="NAME", help="of the files (%(default)s)"
    )
    features = parser.add_argument_group("features")
    features.add_argument(
        "--features", metavar="KIND", help="mfcc, or layer:N: a hidden state of the encoder (mfcc)"
    )
    encoder = features.add_mutually_exclusive_group()
    encoder.add_argument("-u", "--upstream", metavar="NAME", help="the encoder, such as hubert")
    encoder.add_argument("--run", type=Path, metavar="RUN", help="the encoder of a run")
    features.add_argument("-k", "--upstream_ckpt", metavar="PATH", help="the encoder's checkpoint")
    features.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_trust(features)
    kmeans = parser.add_argument_group("k-means")
    kmeans.add_argument(
        "--centers", type=Path, metavar="FILE", help="label with these; nothing is clustered"
    )
    kmeans.add_argument("--clusters", type=int, default=100, metavar="K", help="(%(default)s)")
    kmeans.add_argument(
        "--fraction", type=float, default=1.0, metavar="F", help="of the files to cluster"
    )
    kmeans.add_argument(
        "--memory", type=int, default=1024, metavar="MIB", help="of frames at once (%(default)s)"
    )
    kmeans.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write the labels, with a progress bar on a terminal.

    Raises:
        UserError: a flag is wrong, an output exists, or the audio or the encoder cannot be used.
    """
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

    _check_numbers(arguments)
    out: Path = arguments.out
    check_outputs(out, arguments.split, fits=arguments.centers is None)
    name, features, origin = _features(arguments)
    settings = settings_of(name, features, origin)
    known = check_centers(arguments.centers, settings) if arguments.centers else None
    with exit_on_signals(), _progress() as show:
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
        if known is None:
            # Finding them takes longest: with the file, interrupted labelling can be repeated.
            write_centers(out / CENTERS, centers)
        counts = write_labels(out, arguments.split, audio, features, centers, show)
    unused = int((counts == 0).sum())
    OUTPUT.print(
        f"Wrote {out / arguments.split}.tsv and .km: {counts.sum()} labels of {len(counts)} "
        f"classes" + (f" ({unused} unused)" if unused else "") + f", {features.rate:g} per second.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
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


def _audio(arguments: argparse.Namespace, show: Show) -> AudioList:
    from s3prl_mtl.clustering.audio import listed, training_audio

    if arguments.audio is not None:
        if not arguments.audio.exists():
            raise UserError(
                "There is no such folder or list.",
                where=f"--audio {arguments.audio}",
                code="file-missing",
            )
        return listed(arguments.audio, lambda done, total: show("listing", done, total))
    from s3prl_mtl.config import build_config, parse_tasks
    from s3prl_mtl.data.corpus_cache import forget_listings

    names = parse_tasks(arguments.downstream, flag="-d")
    flags = {"downstream": names, "data": arguments.data, "cache_dir": arguments.cache_dir}
    given = {key: value for key, value in flags.items() if value is not None}
    config = build_config(arguments.config, given, arguments.override)
    if arguments.rescan:
        forget_listings(arguments.cache_dir)
    return training_audio(config, names)


def _features(arguments: argparse.Namespace) -> tuple[str, FrameFeatures, dict[str, Any]]:
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
        "ckpt": arguments.upstream_ckpt,
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


@contextmanager
def _progress() -> Iterator[Show]:
    from rich.progress import Progress

    with Progress(console=MESSAGES, disable=not MESSAGES.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        yield show
