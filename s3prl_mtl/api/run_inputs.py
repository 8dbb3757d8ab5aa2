"""Resolve the arguments of `train` and `evaluate` to config, folder, checkpoint and splits."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.api.calls import Override, PathLike, listed, split_tasks
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import DEFAULT_PATH, Config, build_config, resolve
from s3prl_mtl.config.overrides import ARGUMENT_KEYS
from s3prl_mtl.data.corpus_cache import forget_listings
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import split_name
from s3prl_mtl.registry.task_names import require_in_run, task_packages

RUNS = Path("result") / "downstream"
"""The parent folder of runs named with `-n`."""
FRACTION = ".fraction"
MANIFESTS = ".downstream_expert.datarc.manifests"


def config_of(
    arguments: argparse.Namespace, saved: RunCheckpoint | None, deferred: DeferredLog
) -> Config:
    """The config of a run with unresolved references. Flags override files override checkpoint."""
    flags: dict[str, Any] = {
        key: _plain(getattr(arguments, flag))
        for flag, key in ARGUMENT_KEYS.items()
        if getattr(arguments, flag) is not None and getattr(arguments, flag) is not False
    }
    if arguments.freeze_upstream is False:
        flags["upstream.freeze"] = False
    fractions, tables = _fractions(arguments.fraction), manifest_settings(arguments.manifest)
    flags |= fractions | tables
    overrides, settings = split_override(arguments.override)
    flags |= settings
    changes = _perturbation(arguments)
    if changes and arguments.mode == "evaluate":
        # All of the section: training may have had another one.
        none = read_yaml(DEFAULT_PATH, "defaults")["perturb"]
        flags["perturb"] = {**none, **changes, "splits": "evaluation"}
    else:
        flags |= {f"perturb.{key}": value for key, value in changes.items()}
    if arguments.parallel and not arguments.placement:
        # A placement implies `--parallel task`: do not inherit that of an earlier run.
        flags["distributed.placement"] = None
    if arguments.downstream:
        flags["downstream"] = split_tasks(arguments.downstream)
    config = build_config(
        files=arguments.config,
        flags=flags,
        overrides=overrides,
        base=saved.config if saved is not None else None,
        deferred=deferred,
        trains=arguments.mode == "train",
    )
    require_tasks_of(fractions, FRACTION, config, "--fraction")
    require_tasks_of(tables, MANIFESTS, config, "--manifest")
    return config


def require_tasks_of(keys: Iterable[str], ending: str, config: Config, flag: str) -> None:
    """Check that a run has the tasks of a flag: it ignores the settings of other tasks.

    Args:
        keys: of settings: a task, then `ending`.
        config: of the run.
        flag: source of the settings.

    Raises:
        UserError: names the task.
    """
    packages = task_packages(config, config["downstream"])
    for key in keys:
        task = key.removesuffix(ending)
        require_in_run(task, packages, f"{flag} {task}")


def _plain(value: Any) -> Any:
    """Paths as text, as a config holds them."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def split_override(override: Override | None) -> tuple[str | None, dict[str, Any]]:
    """The text of `-o`, or settings by dotted key: one of the two is empty."""
    if override is None or isinstance(override, str):
        return override, {}
    return None, dict(override)


def _fractions(shares: str | Mapping[str, float] | None) -> dict[str, float]:
    """The settings of `--fraction asr=0.1,ks=0.5`, or of shares by task.

    Raises:
        UserError: an entry is not of this form.
    """
    if isinstance(shares, Mapping):
        return {f"{task}{FRACTION}": share for task, share in shares.items()}
    settings = {}
    for entry in filter(None, map(str.strip, (shares or "").split(","))):
        task, _, share = entry.rpartition("=")
        twice = f"{task}{FRACTION}" in settings
        try:
            settings[f"{task}{FRACTION}"] = float(share)
        except ValueError:
            task = ""
        if twice:
            raise UserError(
                f"The fraction of {task} is given twice: {entry!r}.",
                where="--fraction",
                fix="Give each task once.",
                code="conflicting-options",
            )
        if not task:
            raise UserError(
                f"{entry!r} is not of the form task=fraction.",
                where="--fraction",
                fix="For example: asr=0.1,ks=0.5.",
                code="invalid-value",
            )
    return settings


Manifest = str | Sequence[str] | Mapping[str, Mapping[str, PathLike]]
"""Tables by task and split, or the texts of `--manifest`."""


def manifest_settings(manifest: Manifest | None) -> dict[str, dict[str, str]]:
    """The settings of `--manifest er:train=a.csv,dev=b.csv,test=c.csv`, which may be repeated.

    Raises:
        UserError: an entry is not of this form.
    """
    if isinstance(manifest, Mapping):
        for task, tables in manifest.items():
            if not isinstance(tables, Mapping):
                raise UserError(
                    f"{tables!r} is not a mapping of splits to tables.",
                    where=f"manifest, {task}",
                    fix='For example: {"er": {"train": "a.csv", "dev": "b.csv", "test": "c.csv"}}.',
                    code="wrong-type",
                )
        return {
            f"{task}{MANIFESTS}": {split: os.fspath(table) for split, table in tables.items()}
            for task, tables in manifest.items()
        }
    settings: dict[str, dict[str, str]] = {}
    for entry in listed(manifest):
        head, *pairs = entry.split(",")
        task, colon, first = head.partition("=")[0].rpartition(":")
        tables = dict(pair.split("=", 1) for pair in [head[len(task) + 1 :], *pairs] if "=" in pair)
        found = settings.setdefault(f"{task}{MANIFESTS}", {})
        twice = found.keys() & tables.keys()
        if not (task and colon and first) or twice or len(tables) != len(pairs) + 1:
            raise UserError(
                f"{entry!r} is not of the form task:split=file,split=file, with a table for each "
                "split.",
                where="--manifest",
                fix="For example: er:train=train.csv,dev=dev.csv,test=test.csv.",
                code="invalid-value",
            )
        found |= tables
    return settings


def _perturbation(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of `--noise`, `--reverb` and `--speed`.

    Raises:
        UserError: a value is not of its form.
    """
    settings: dict[str, Any] = {}
    if arguments.noise:
        folder, colon, ratios = arguments.noise.rpartition(":snr=")
        settings["noise"] = folder if colon else ratios
        other = re.fullmatch(r".+:(\w*)=.*", settings["noise"])
        if other and not os.path.exists(os.path.expanduser(settings["noise"])):
            raise UserError(
                f"--noise has no option {other[1]!r}.",
                where=f"--noise {arguments.noise}",
                fix="For example: musan/noise:snr=5-20.",
                code="unknown-key",
            )
        if colon:
            found = re.fullmatch(r"(-?[\d.]+)(?:-(-?[\d.]+))?", ratios)
            values = _floats([found[1], found[2] or found[1]]) if found else None
            if values is None:
                raise UserError(
                    f"{ratios!r} is not a range of signal-to-noise ratios.",
                    where="--noise",
                    fix="For example: musan/noise:snr=5-20.",
                    code="invalid-value",
                )
            settings["snr"] = values
    if arguments.reverb:
        settings["reverb"] = arguments.reverb
    if arguments.speed and not isinstance(arguments.speed, str):
        settings["speed"] = list(arguments.speed)
    elif arguments.speed:
        settings["speed"] = _floats(arguments.speed.split(","))
        if settings["speed"] is None:
            raise UserError(
                f"{arguments.speed!r} is not a list of factors.",
                where="--speed",
                fix="For example: 0.9,1.0,1.1.",
                code="invalid-value",
            )
    return settings


def _floats(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None


def forget_listings_if_asked(arguments: argparse.Namespace, config: Config, world: World) -> None:
    """With `--rescan`, mark every corpus to be listed at its next use."""
    if arguments.rescan:
        # On every machine: the cache may be local. The ranks wait for each other.
        first = world.local_rank == 0
        world.run_on_all_ranks(
            lambda: forget_listings(resolve(config).cache_dir) if first else None
        )


def refuse_pairs(arguments: argparse.Namespace) -> None:
    """Refuse two arguments that say the same thing.

    Raises:
        UserError: both are given.
    """
    for first, second, given, what in (
        ("-n", "-p", arguments.expname and arguments.expdir, "where the run is"),
        ("-a", "-e", arguments.auto_resume and arguments.past_exp, "what to resume"),
    ):
        if given:
            raise UserError(
                f"{first} and {second} both set {what}.",
                where=f"{first} and {second}",
                fix="Give one of them.",
                code="conflicting-options",
            )


def named_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder of `-p` or `-n`; None without either."""
    if arguments.expdir:
        return Path(arguments.expdir)
    return RUNS / arguments.expname if arguments.expname else None


def default_folder(config: Config) -> Path:
    """The folder of a run that has no name: named after its upstream and its tasks."""
    # Upstreams and tasks may be paths. Package names are omitted: installing a second package with
    # a task of the same name must not change the folder.
    words = [config["upstream"]["name"], *(split_name(task)[1] for task in config["downstream"])]
    return RUNS / "-".join(Path(word.rstrip("/")).name for word in words)


def load_checkpoint(run: Path, world: World, set_aside: bool) -> tuple[RunCheckpoint, Path]:
    """Load the same checkpoint on all ranks.

    Only the first rank chooses the file, because it may have to skip a damaged one.

    Args:
        run: a run's folder, or a checkpoint file.
        world: the ranks.
        set_aside: rename damaged files, so that they are not tried again.

    Returns:
        The checkpoint and its file.
    """
    chosen = world.run_on_all_ranks(
        lambda: checkpoints.load_newest(run, set_aside=set_aside) if world.is_lead else None
    )
    path = world.broadcast(chosen[1] if chosen is not None else run)
    saved = world.run_on_all_ranks(
        lambda: chosen[0] if chosen is not None else checkpoints.load(path)
    )
    return saved, path


def parse_splits(text: str | Iterable[str | tuple[str, str]] | None) -> list[tuple[str, str]]:
    """The pairs of task and split of `-t`.

    Raises:
        UserError: an entry without a task or a split.
    """
    if text is not None and not isinstance(text, str):
        text = ",".join(pair if isinstance(pair, str) else ":".join(pair) for pair in text)
    targets = []
    for entry in filter(None, map(str.strip, (text or "").split(","))):
        task, _, split = entry.rpartition(":")
        if not task or not split:
            raise UserError(
                f"{entry!r} is not of the form task:split.",
                where="-t",
                fix='For example: "asr:test-clean".',
                code="invalid-value",
            )
        targets.append((task, split))
    return targets
