"""The parts of a run, built from its config or from one of its checkpoints."""

from __future__ import annotations

import inspect
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.compatibility import check_encoder, check_head, check_selection
from s3prl_mtl.checkpoint.contents import encoder_weights, load_strictly
from s3prl_mtl.config import Config
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.mtl_branch.checkpoint import unwrapped
from s3prl_mtl.registry.plugins import (
    OUR_PACKAGE,
    find_upstream,
    load_task,
    split_name,
    tasks_named,
)
from s3prl_mtl.registry.task_names import Packages, find_same_task, same_name_tasks, task_packages
from s3prl_mtl.tasks.contract import check_class
from s3prl_mtl.training.preflight import (
    check_plain,
    corpus_problems,
    raise_together,
    split_mistakes,
)
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer, Upstream, load_upstream, rebuild_upstream
from s3prl_mtl.upstreams.zoo.huggingface import HUGGING_FACE

logger = logging.getLogger(__name__)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `--device`; `auto` is the GPU where there is one.

    Args:
        name: of the device; `cuda` without a number is the one of this rank.
        local_rank: which of the processes of this machine this is.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU here")
        if device.type == "cuda" and device.index is None:
            gpus = torch.cuda.device_count()
            if local_rank >= gpus:
                raise UserError(
                    f"Process {local_rank} of this machine has no GPU: there are {gpus}.",
                    where="torchrun --nproc_per_node",
                    fix=f"Start {gpus} processes here, or take --device cpu.",
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
    except (RuntimeError, AssertionError, NotImplementedError) as cause:
        reason = str(cause).splitlines()[0]
        raise UserError(
            f"The device {name!r} cannot be used: {reason}.",
            where="--device",
            fix="auto, cpu, cuda or cuda:<number>.",
        ) from cause
    return device


def build_upstream(config: Config, saved: checkpoints.Checkpoint | None = None) -> Upstream:
    """The encoder that the config names, or the one that a checkpoint holds."""
    if saved is not None and saved["UpstreamInfo"] is not None:
        return rebuild_upstream(saved["UpstreamInfo"])
    settings = config["upstream"]
    offered = {
        "cache_dir": config["cache_dir"],
        "model_config": _read_upstream_config(settings["config"]),
    }
    options = {name: value for name, value in offered.items() if value is not None}
    factory = find_upstream(settings["name"])
    if factory is not None:
        # The cache is offered to those that download; the rest need not know of it.
        parameters = inspect.signature(factory).parameters
        if "cache_dir" not in parameters:
            options.pop("cache_dir", None)
        if "model_config" in options and "model_config" not in parameters:
            raise UserError(f"The upstream {settings['name']!r} takes no config file.", where="-g")
    return load_upstream(settings["name"], settings["ckpt"], **options)


def build_experts(
    config: Config,
    names: Sequence[str],
    featurizer: Featurizer,
    folder: Path,
    saved: checkpoints.Checkpoint | None = None,
) -> dict[str, Any]:
    """The experts of tasks, with the label spaces of a checkpoint where there is one.

    Args:
        config: of the run.
        names: the tasks.
        featurizer: what the heads get their features from.
        folder: of the run.
        saved: a checkpoint of the run.

    Raises:
        UserError: one report of all that keeps the corpora of the tasks from being read.
    """
    classes = {
        name: load_task(name, config[name].get("package"), folder=config[name].get("folder"))
        for name in names
    }
    past = saved["Tasks"] if saved is not None else {}
    held = task_packages(saved["Config"], past) if saved is not None else None
    for name, expert_class in classes.items():
        check_class(name, expert_class)
        _check_held(name, expert_class, held)
    # The branch's checkpoints hold no label spaces, nor do those of s3prl's experts.
    labels = {name: entry["Labels"] for name, entry in past.items()}
    own_labels = {name: kind for name, kind in classes.items() if labels.get(name) is None}
    problems = corpus_problems(config, own_labels)
    mistakes = [line for lines in problems.values() for line in lines]
    experts = {}
    for name, expert_class in classes.items():
        if name in problems:
            continue
        logger.info("Building task %s.", name)
        # s3prl's experts write into their folder without making it.
        (folder / name).mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "upstream_dim": featurizer.output_dim,
            "upstream_rate": featurizer.downsample_rate,
            "downstream_expert": config[name]["downstream_expert"],
            "expdir": str(folder / name),
            "cache_dir": config["cache_dir"],
            "seed": config["seed"],
        }
        if labels.get(name) is not None:
            arguments["labels"] = labels[name]
        # A head starts from the same weights whatever other tasks the run has.
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"] + zlib.crc32(name.encode()))
            try:
                experts[name] = expert_class(**arguments)
                check_plain(name, experts[name])
            except UserError as mistake:
                mistakes.append(str(mistake))
            except Exception as cause:
                _blame_plugin(name, config[name].get("package"), cause)
                raise
    if mistakes:
        # The splits are scanned later; with a report to give they belong in it.
        for name, expert in experts.items():
            mistakes += split_mistakes(Task.from_settings(name, expert, config[name]))
    raise_together(mistakes)
    return experts


def _check_held(name: str, expert_class: type, held: Packages | None) -> None:
    """Only what learns something is trained and held by checkpoints.

    Args:
        held: the tasks of the checkpoint; None where there is none, and training begins.
    """
    learns = getattr(expert_class, "is_trained", True)
    if held is None and not learns:
        raise UserError(
            f"{name} trains nothing: it can only be evaluated.",
            where="-d",
            fix=f"Train without it, then: run_mtl.py -m evaluate -e RUN -d {name}.",
        )
    if held is not None and learns and name not in held:
        rivals = same_name_tasks(name, held)
        others = [other for other in held if split_name(other)[1] != split_name(name)[1]]
        raise UserError(
            f"The checkpoint holds no task {name!r}.",
            where="-d",
            fix="It holds: " + ", ".join([*rivals, *others]) + ".",
        )


def _blame_plugin(task: str, package: str | None, cause: Exception) -> None:
    """An expert of another package failed: say whose it is. Ours is our own failure."""
    for plugin in tasks_named(split_name(task)[1]):
        if plugin.package == package != OUR_PACKAGE:
            raise UserError(
                f"The expert of task {task!r} cannot be built: {type(cause).__name__}: {cause}.",
                where=f"{plugin.entry_point.value} of package {plugin}",
                fix="Its settings are the task's block of the config; --verbose shows where it "
                "failed.",
            ) from cause


def load_initial_weights(
    config: Config, upstream: Upstream, featurizer: Featurizer, experts: Mapping[str, nn.Module]
) -> None:
    """Start from other runs: `--init_upstream_ckpt` for the encoder, `-i` for the rest.

    `-i` names a checkpoint of a run (encoder, featurizer and the heads that it holds), or a folder
    of heads trained singly: `<task>/<upstream>_<task>.ckpt`, each with `Downstream`; <task> is the
    plain name there. Of a run the heads are taken that are of the same task of the same package.
    """
    if config["init_ckpt"]:
        path = Path(config["init_ckpt"])
        if path.is_dir() and not checkpoints.states_files(path):
            _load_single_heads(path, _word(config["upstream"]["name"]), experts)
        else:
            saved = checkpoints.load(checkpoints.locate(path, "-i"))
            _load_from_run(saved, upstream, featurizer, experts, task_packages(config, experts))
    load_initial_encoder(config, upstream)


def load_initial_encoder(config: Config, upstream: Upstream) -> None:
    """Give the encoder the weights of `--init_upstream_ckpt`, if that is set.

    Raises:
        UserError: the file holds no encoder, or another one.
    """
    if not config["init_upstream_ckpt"]:
        return
    flag = "--init_upstream_ckpt"
    path = checkpoints.locate(Path(config["init_upstream_ckpt"]), flag)
    # Whatever program wrote it: `Upstream` is what s3prl calls it, too.
    weights = checkpoints.read_tensors(path).get("Upstream")
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(
            f"{path} holds no encoder.",
            where=flag,
            fix="Give a run that trained its encoder; -k takes files of pre-training.",
        )
    _load_encoder({"Upstream": unwrapped(weights)}, upstream, flag)


def _load_from_run(
    saved: checkpoints.Checkpoint,
    upstream: Upstream,
    featurizer: Featurizer,
    experts: Mapping[str, nn.Module],
    packages: Packages,
) -> None:
    if saved["Upstream"]:
        _load_encoder(saved, upstream, "-i")
    else:
        logger.info("-i holds no encoder, it was frozen: it stays as it was pre-trained.")
    check_selection(saved["Featurizer"], upstream, featurizer, "-i")
    load_strictly(featurizer, saved["Featurizer"], "the featurizer", "-i")
    held = task_packages(saved["Config"], saved["Tasks"])
    for name, expert in experts.items():
        other = find_same_task(name, packages[name], held)
        rivals = same_name_tasks(name, held)
        if other is not None:
            _start_head(name, expert, saved["Tasks"][other]["Downstream"], "-i")
        elif rivals:
            logger.warning(
                "-i holds a head of %s, and the task here is that of package %s: it starts from "
                "random weights.",
                *(" and ".join(rivals), packages[name]),
            )
        else:
            logger.info("-i holds no head of %s: it starts from random weights.", name)


def _word(upstream_name: str) -> str:
    """The name of an upstream within that of a file: of a path its last part."""
    return Path(upstream_name.removeprefix(HUGGING_FACE)).name


def _load_single_heads(folder: Path, upstream_name: str, experts: Mapping[str, nn.Module]) -> None:
    for name, expert in experts.items():
        # s3prl, which trained them, knows no packages.
        plain = split_name(name)[1]
        path = folder / plain / f"{upstream_name}_{plain}.ckpt"
        if not path.is_file():
            raise UserError(
                f"There is no head of {name} to start from: {path} does not exist.",
                where="-i",
                fix=f"Expected {folder}/<task>/{upstream_name}_<task>.ckpt for every task of -d.",
            )
        saved = checkpoints.read_tensors(path)
        if not isinstance(saved.get("Downstream"), Mapping):
            raise UserError(f"{path} holds no weights as `Downstream`.", where="-i")
        _start_head(name, expert, saved["Downstream"], str(path))


def _start_head(name: str, expert: nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Take over a head, but not how good it was: this run has its own best checkpoint."""
    own = getattr(expert, "best_score", None)
    score = own.clone() if isinstance(own, torch.Tensor) else None
    check_head(name, weights, expert, where)
    load_strictly(expert, weights, f"the head of {name}", where)
    if score is not None:
        expert.best_score.copy_(score)  # type: ignore[operator]


def _load_encoder(saved: checkpoints.Checkpoint, upstream: Upstream, where: str) -> None:
    check_encoder(encoder_weights(saved), upstream, where)
    load_strictly(upstream, encoder_weights(saved), "the encoder", where)


def _read_upstream_config(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    return read_yaml(path, "-g")
