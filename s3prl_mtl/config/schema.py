"""The settings of a run as types: one dataclass for each section of `config.yaml`.

OmegaConf checks names and types of a config file against these classes, `checks.py` the ranges
that the metadata of a field states. Default values are in `default.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from s3prl_mtl.nn.spec_augment import TIME_WARP_MODES
from s3prl_mtl.upstreams.featurizer import SELECTIONS


def _at_least(least: int) -> Any:
    return field(metadata={"at_least": least})


def _one_of(*choices: str) -> Any:
    return field(metadata={"one_of": choices})


@dataclass(frozen=True, kw_only=True)
class UpstreamConfig:
    """The encoder.

    Attributes:
        name: of an upstream plugin, of s3prl's zoo, or ``hf:`` and a model of Hugging Face.
        ckpt: a checkpoint file instead of the upstream's own.
        config: the upstream's config file, for plugins that take one.
        feature_selection: the hidden states that the features are a weighted sum of.
        freeze: train the heads only.
        freeze_layers: freeze the convolutional front end (0), or everything up to the output of
            this Transformer layer; None to train all.
        trust_remote_code: execute modelling code of the repository of Hugging Face.
    """

    name: str
    ckpt: Path | None
    config: Path | None
    feature_selection: str = _one_of(*SELECTIONS)
    freeze: bool
    # Absent from checkpoints of earlier versions.
    freeze_layers: int | None = field(default=None, metadata={"at_least": 0})
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How ranks share the work.

    Attributes:
        parallel: ``data``: each rank has a share of every task; ``task``: all of a few tasks.
        placement: such as ``"0:asr;1:pr,ks"``; None to place by measured cost.
    """

    parallel: str = _one_of("data", "task")
    placement: str | None


@dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """The training loop. Everything that is counted in steps counts updates, from 1.

    Attributes:
        total_steps: steps to train.
        gradient_accumulate_steps: batches of every task in one step.
        gradient_clipping: the largest norm of the gradient; a large number never clips.
        log_step: log every so many steps.
        eval_step: evaluate the dev splits every so many steps.
        save_step: save a checkpoint every so many steps.
        max_keep: checkpoints to keep.
        unfreeze_after: train only heads and featurizer in the first steps, so many; None to train
            the encoder from the start.
        checkpoint_activations: compute the activations of the encoder's layers again in the
            backward pass instead of keeping them.
        max_pass_seconds: of audio in one forward and backward pass; a step with more is divided.
            None to measure on a GPU how many fit.
        sampling: which tasks take part in a step, as in `s3prl_mtl.data.task_sampling`.
        num_workers: processes of each rank that read the training batches of all tasks; 0 reads in
            the rank itself, None chooses by the number of cores.
        log_conflicts: compare the gradients of the tasks every so many steps; 0 for never.
        track: programs that show the numbers, as in `s3prl_mtl.tracking.trackers`.
        test_first: evaluate the test splits before the first step.
        test_last: evaluate the test splits after the last step.
        test_best: evaluate them with each task's best checkpoint, where there is one.
    """

    total_steps: int = _at_least(1)
    gradient_accumulate_steps: int = _at_least(1)
    gradient_clipping: float = field(metadata={"above": 0})
    log_step: int = _at_least(1)
    eval_step: int = _at_least(1)
    save_step: int = _at_least(1)
    max_keep: int = _at_least(1)
    unfreeze_after: int | None = _at_least(0)
    checkpoint_activations: bool
    max_pass_seconds: float | None = field(metadata={"above": 0})
    sampling: str
    num_workers: int | None = _at_least(0)
    log_conflicts: int = _at_least(0)
    track: str
    test_first: bool
    test_last: bool
    test_best: bool


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """Arguments of `s3prl_mtl.nn.SpecAugment`; widths in frames and in feature channels."""

    apply_time_warp: bool
    apply_time_mask: bool
    apply_freq_mask: bool
    time_warp_mode: str = _one_of(*TIME_WARP_MODES)
    time_warp_window: int
    time_mask_width_range: list[int]
    freq_mask_width_range: list[int]
    num_freq_mask: int
    num_time_mask: int


@dataclass(frozen=True, kw_only=True)
class PerturbConfig:
    """Arguments of `s3prl_mtl.data.perturbation.Perturbation`, by the names of its errors.

    Attributes:
        noise: a folder of audio files.
        snr: lowest and highest signal-to-noise ratio in dB.
        reverb: a folder of room impulse responses.
        speed: factors, each as likely.
        probability: of noise, and of reverberation.
        splits: ``train`` for training batches, ``evaluation`` for evaluated splits.
    """

    noise: Path | None
    snr: list[float]
    reverb: Path | None
    speed: list[float]
    probability: float = field(metadata={"at_least": 0, "at_most": 1})
    splits: str = _one_of("train", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of a config but the blocks of its tasks.

    Attributes:
        upstream: the encoder.
        downstream: names of the tasks, in the order of training.
        data: the folder of the corpora.
        cache_dir: downloads and manifests; None for the cache of the user.
        seed: of every random choice.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: of the encoder; ``tf32`` rounds the inputs of a GPU's matrix products, also
            those of the heads.
        init_ckpt: files or folders with weights to start from.
        init_heads_only: take the heads of these only, not the encoder and the layer weights.
        init_upstream_ckpt: weights of the encoder to start from.
        distributed: how ranks share the work.
        runner: the training loop.
        optimizer: ``name`` of a class of `torch.optim`, its arguments, and in ``groups`` those of
            parts of the run.
        scheduler: ``name`` of a schedule, and its arguments; None for a constant rate.
        specaug: masks on the features of every task; None for none.
        perturb: random changes of waveforms.
        balancer: ``name`` of the method that combines the tasks, and its options.
    """

    upstream: UpstreamConfig
    downstream: list[str]
    data: Path | None
    cache_dir: Path | None
    seed: int = field(metadata={"at_least": 0, "at_most": 2**63 - 1})
    device: str
    precision: str = _one_of("fp32", "tf32", "bf16")
    init_ckpt: list[Path] | None
    # Absent from checkpoints of earlier versions.
    init_heads_only: bool = False
    init_upstream_ckpt: Path | None
    distributed: DistributedConfig
    runner: RunnerConfig
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    specaug: SpecAugmentConfig | None
    perturb: PerturbConfig
    balancer: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The block of one task.

    Attributes:
        package: the distribution of the task's plugin; None for an expert of s3prl.
        train_split: the split to train on; None for a task that is only evaluated.
        dev_splits: evaluated during training, the first selects checkpoints; None for the
            expert's own.
        test_splits: evaluated at the end; None for the expert's own.
        fraction: of the training utterances to train on, the same ones for the same seed.
        downstream_expert: the task's own settings, as its author defines them.
        folder: of an expert of s3prl.
        config: the file with the settings of an expert of s3prl.
    """

    package: str | None = None
    train_split: str | None = "train"
    dev_splits: list[str] | None = None
    test_splits: list[str] | None = None
    fraction: float = 1.0
    downstream_expert: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    config: str | None = None

    @classmethod
    def from_plain(cls, block: Mapping[str, Any]) -> TaskConfig:
        """A task's block of a config; entries of other programs in it are left out."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in block.items() if key in known})


def with_lists(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with a single path of `init_ckpt` as a list."""
    path = layer.get("init_ckpt")
    return {**layer, **({"init_ckpt": [path]} if isinstance(path, str) else {})}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """A whole config, checked, its references filled in.

    Attributes:
        tasks: the block of every task, in the order of `downstream`.
    """

    tasks: dict[str, TaskConfig]


def _settings(schema: Any, path: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    types = get_type_hints(schema)
    for entry in fields(schema):
        key, kind = f"{path}{entry.name}", types[entry.name]
        section = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
        if section is not None:
            yield from _settings(section, f"{key}.")
        else:
            yield key, kind, entry.metadata


SETTINGS = list(_settings(Settings))
"""Dotted key, type and metadata of every setting."""

PATHS = [key for key, kind, _ in SETTINGS if kind in (Path | None, list[Path] | None)]
"""Settings that are paths or lists of paths."""

CHOICES = {key: rules["one_of"] for key, _, rules in SETTINGS if "one_of" in rules}
"""The allowed values of the settings that have few."""
