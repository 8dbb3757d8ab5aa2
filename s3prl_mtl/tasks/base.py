"""Base class of the built-in tasks."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from lhotse.utils import fastcopy
from torch import Tensor, nn

from s3prl_mtl.data import Corpus, Finding, Manifest, load_cuts, load_waveform
from s3prl_mtl.data.audio import EFFECT
from s3prl_mtl.data.batching import BatchSource
from s3prl_mtl.data.corpus_cache import cached
from s3prl_mtl.data.corpus_report import CorpusReport, report_corpus
from s3prl_mtl.data.perturbation import Perturbation
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.data.table_corpus import TableCorpus
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.cache import default_cache_dir
from s3prl_mtl.tasks.best_checkpoint import first_score, selecting_metric_of, update_best_score
from s3prl_mtl.tasks.metric import Metric, add_settings_file, check_name, place_of, settings_file
from s3prl_mtl.tasks.settings import CheckedSettings

_LOG = logging.getLogger(__name__)

EVAL_BATCH_SECONDS = 100.0
"""Audio in a batch of an evaluation, if the settings give no limit."""

UNDEFINED = "undefined-metric"
"""Code of the error of a metric that its inputs leave undefined."""


class ScalarLogger(Protocol):
    """Takes the metrics of an expert, as TensorBoard's `SummaryWriter` does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


class TaskExpert(CheckedSettings, nn.Module, ABC):
    """One task of a multi-task run: its corpus, head, loss and metrics.

    The public methods are those of s3prl's `DownstreamExpert`. The runner uses nothing else of a
    task, so any class with these methods can be trained. A subclass defines `corpus_type`,
    `build_head`, `target` or `read`, `forward` and `measure`; for inference without labels also
    `predict(features, lengths_samples)`, which gets B features (T_i, D) and the B lengths of the
    waveforms after :meth:`condition`, and returns a dict of plain JSON for each utterance. Of long
    recordings, the predictions of chunks are joined by `join_chunks` (see `docs/predict.md`).

    Args:
        upstream_dim: width D of the features.
        upstream_rate: samples (at 16 kHz) between two frames of the features; 320 for HuBERT.
        downstream_expert: the task's settings: in `datarc` the paths of the corpus and the batch
            sizes, in `modelrc` (`model` for `pr` and `sf`) the head.
        expdir: folder for files of the task.
        labels: the label space (see `docs/architecture.md`), in place of the corpus. By default it
            is read from the corpus.
        cache_dir: folder of scanned manifests.
        seed: of the order of training utterances and of random crops.
        runner_arguments: other arguments of s3prl's contract; ignored.

    Raises:
        UserError: the settings, the corpus or the declarations of the class are wrong.
    """

    name: ClassVar[str]
    """The task's name after `-d`."""
    corpus_type: ClassVar[type[Corpus]]
    table_type: ClassVar[type[TableCorpus] | None] = None
    """The corpus in place of `corpus_type` where `datarc.manifests` names tables."""
    train_split: str = "train"
    dev_split: str = "dev"
    """The split that selects the best checkpoint."""
    test_split: str = "test"
    metrics: ClassVar[tuple[Metric, ...]]
    """Tables show the first one, and those that are `headline`."""
    selected_by: ClassVar[str | None] = None
    """Name of the metric that selects the best checkpoint; None: the first one."""
    worst_score: ClassVar[float | None] = None
    """Initial value of the buffer `best_score`; only better values earn a checkpoint. None:
    infinity where lower is better, otherwise the lower end of the metric's range."""

    wants_hidden_states: ClassVar[bool] = False
    """Whether `forward` and `predict` get the encoder's hidden states (L, T_i, D) in place of
    features: the input of the first layer and the output of each layer."""
    has_timed_labels: ClassVar[bool] = False
    """Whether labels are positions in the audio: its speed cannot be changed then."""
    is_trained: ClassVar[bool] = True
    """False for a task without parameters to learn: it cannot be trained, and any run can be
    evaluated on it with `-m evaluate`, whether or not its checkpoints have the task."""

    best_score: Tensor

    def __init__(
        self,
        upstream_dim: int,
        upstream_rate: int,
        downstream_expert: Mapping[str, Any],
        expdir: str | os.PathLike[str],
        *,
        labels: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        **runner_arguments: object,
    ) -> None:
        check_name(type(self))
        worst = first_score(type(self))
        super().__init__()
        self.upstream_dim = upstream_dim
        self.upstream_rate = upstream_rate
        self.settings = dict(downstream_expert)
        self.datarc: dict[str, Any] = dict(downstream_expert.get("datarc") or {})
        self.expdir = Path(expdir)
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.seed = seed
        self.labels: dict[str, Any] = dict(labels if labels is not None else self.read_labels())
        self.decision: dict[str, float] = {}
        """Values that the head chose on its dev split, such as a threshold; checkpointed."""
        self.starts_from = "random weights"
        """Source of the head's weights in a new run, for the log."""
        self.fraction = 1.0
        """Fraction of the training utterances to use; the runner sets this and the next two."""
        self.perturbation: Perturbation | None = None
        self.perturbs_training = True
        """Whether training batches are perturbed, as opposed to evaluated splits."""
        self._split_cuts: dict[str, Manifest] = {}
        self.register_buffer("best_score", torch.full((1,), worst))
        self.build_head()

    # ------------------------------------------------------------- a task writes these

    @abstractmethod
    def build_head(self) -> None:
        """Create the head's modules from `self.settings` and `self.labels`."""

    @abstractmethod
    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        """The metrics of a split, by name, from the records of `forward`. Rates are fractions.

        In training, `forward` should record tensors of the GPU as they are, detached: a number
        (`.item()`) would make every step wait for the GPU. The runner copies them to the CPU.

        Raises:
            UserError: `undefined-metric` if the records leave them undefined: in training they are
                left out, in an evaluation the split is reported as one that cannot be scored. For
                some of several metrics see :meth:`defined`.
        """

    def target(self, labels: Mapping[str, Any]) -> Any:
        """The target of the loss for one utterance. Called in loader workers.

        Args:
            labels: of the utterance, from its corpus.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither `target` nor `read`")

    def condition(self, waveform: Tensor) -> Tensor:
        """Preprocess a waveform for evaluation and inference: gain, trimming of silence.

        Args:
            waveform: (samples,) at 16 kHz.

        Returns:
            Waveform (other_samples,).
        """
        return waveform

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        """The waveform of an utterance, float32 (samples,). Tasks that crop override this."""
        return self.condition(load_waveform(cut))

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        """One item of a batch: the waveform, then a value for each further argument of `forward`.

        Args:
            cut: the utterance.
            split: that it is read for.
            generator: for random crops; seeded by seed, epoch, position and utterance.
        """
        return self.waveform(cut, split, generator), self.target(cut.custom["labels"])

    def cuts(self, split: str) -> Manifest:
        """The utterances of a split. Tasks that check them or leave some out override this.

        For a million utterances, check `labels`, `distinct_labels` or `durations` of the manifest:
        making every cut takes half a minute.
        """
        return load_cuts(self.corpus, split, self.cache_dir)

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Utterances of a split that cannot be trained on or scored.

        For the report of the corpus. Every evaluated split has to be checked for what its metrics
        need: an error here saves hours of training.
        """
        return []

    def draw_weights(self, split: str, cuts: Manifest) -> Sequence[float] | np.ndarray | None:
        """Relative weights for sampling utterances with replacement; None: each once."""
        return None

    def from_s3prl(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a state dict of this task's head that s3prl trained, before it is loaded.

        Tasks whose outputs have another order or number in s3prl override this.
        """
        return head

    # ---------------------------------------------------------------- s3prl's contract

    def get_dataloader(
        self,
        split: str,
        epoch: int = 0,
        skip_batches: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> Iterable[tuple[Any, ...]]:
        """The batches of a split, each `(wavs, *labels)`: lists with an entry per utterance.

        Args:
            split: of the corpus.
            epoch: determines, with the seed, the order and every random crop.
            skip_batches: number of batches to skip at the beginning, without reading them.
            shares: the shares to read, one batch of each in turn; by default all.
            num_shares: number of equal parts of the epoch, usually one for each process.
        """
        num_workers = self.datarc.get("num_workers", 0)
        source = self._batch_source(split)
        return source.loader(epoch, shares, num_shares, skip_batches, num_workers)

    def log_records(
        self,
        split: str,
        records: Mapping[str, Sequence[Any]],
        logger: ScalarLogger,
        global_step: int,
        batch_ids: Sequence[int] = (),
        total_batch_num: int = 0,
    ) -> list[str]:
        """Report the metrics of a split.

        Without records nothing is reported: every loss since the last log may have been dropped.

        Args:
            split: that was read.
            records: of `forward`, joined over batches and ranks, with all tensors on the CPU.
            logger: gets a scalar for each metric.
            global_step: of the run.
            batch_ids: not used; part of s3prl's contract.
            total_batch_num: not used, like `batch_ids`.

        Returns:
            `["<split>-best.ckpt"]` if the dev split improved on `best_score`, otherwise nothing.
        """
        if not any(len(entries) for entries in records.values()):
            return []
        try:
            values = self.measure(split, records)
        except UserError as error:
            # A few training batches may not have what a metric needs.
            if split != self.train_split or error.code != UNDEFINED:
                raise
            _LOG.debug("%s: undefined for these training batches: %s", self.name, error)
            values = {}
        losses = records.get("loss") or []
        if losses:
            values["loss"] = sum(map(float, losses)) / len(losses)
        for metric, value in values.items():
            logger.add_scalar(f"{self.name}/{split}-{metric}", value, global_step=global_step)
        improved = split == self.dev_split and update_best_score(
            self.best_score, self.selecting_metric, values
        )
        return [f"{split}-best.ckpt"] if improved else []

    # ------------------------------------------------------------------------ the rest

    def defined(self, split: str, scores: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        """Compute several metrics of which some may be undefined, for :meth:`measure`.

        Args:
            split: in training, undefined metrics are left out; otherwise they are NaN, with a
                warning.
            scores: computes each metric; raises the UserError `undefined-metric`.

        Raises:
            UserError: no metric of an evaluated split is defined.
        """
        values: dict[str, float] = {}
        undefined: dict[str, UserError] = {}
        for name, score in scores.items():
            try:
                values[name] = score()
            except UserError as error:
                if error.code != UNDEFINED:
                    raise
                undefined[name] = error
        if split == self.train_split:
            return values
        if undefined and not values:
            raise next(iter(undefined.values()))
        titles = {metric.name: metric.title for metric in self.metrics}
        for name, reason in undefined.items():
            _LOG.warning(
                "%s %s: %s is undefined: %s", self.name, split, titles.get(name, name), reason.what
            )
        return {name: values.get(name, math.nan) for name in scores}

    def prepare(self, split: str) -> None:
        """Scan a split, so that its problems are reported before it is needed.

        Raises:
            UserError: the split does not exist, or its corpus cannot be read.
        """
        if split not in self._split_cuts:
            # Listing the folder of a large corpus takes seconds.
            self._split_cuts[split] = self.cuts(split)

    def report(self, splits: Iterable[str]) -> CorpusReport | None:
        """Counts and contradictions of splits, or None if the task has no corpus of this package.

        Args:
            splits: of the corpus. Findings between splits need the training split among them.

        Raises:
            UserError: as :meth:`prepare`; or :meth:`cuts` does not return a manifest.
        """
        names = sorted(filter(None, dict.fromkeys(splits)), key=lambda s: s != self.train_split)
        for split in names:
            self.prepare(split)
        cuts = {split: self._split_cuts[split] for split in names if split in self._split_cuts}
        if not cuts or not isinstance(self.corpus, Corpus):
            return None
        for found in cuts.values():
            if not isinstance(found, Manifest):
                raise UserError(
                    f"`cuts` returned a {type(found).__name__}.",
                    where=place_of(type(self), "cuts"),
                    fix="Return the Manifest of super().cuts(split), or a part of it (`filter`).",
                    code="expert-invalid",
                )
        own = [finding for split in cuts for finding in self.findings(split, cuts[split])]
        return report_corpus(
            self.corpus, cuts, own, trained=self.train_split in cuts, cache_dir=self.cache_dir
        )

    def utterances(self, split: str) -> int:
        """Number of utterances of a split.

        Raises:
            UserError: as :meth:`prepare`.
        """
        self.prepare(split)
        return len(self._split_cuts[split])

    def batch_source(self, split: str) -> BatchSource | None:
        """The batches of a split, for the loader workers that the tasks of a run share.

        None for a task with a loader of its own.

        Raises:
            UserError: as :meth:`prepare`.
        """
        return None if self.has_own_loader else self._batch_source(split)

    def _batch_source(self, split: str) -> BatchSource:
        self.prepare(split)
        cuts = self._split_cuts[split]
        training = split == self.train_split
        if training:
            cuts = self._trained_part(cuts)
        size, seconds = self._batch_limits(split)
        is_perturbed = training == self.perturbs_training
        return BatchSource(
            cuts=cuts,
            collate=_Reader(self, split, self.perturbation if is_perturbed else None),
            batch_size=size,
            batch_seconds=seconds,
            training=training,
            seed=self.seed,
            weights=self.draw_weights(split, cuts),
            bucketed=training and bool(self.datarc.get("bucketed", False)),
            sliding=training and bool(self.datarc.get("sliding", False)),
        )

    def _trained_part(self, cuts: Manifest) -> Manifest:
        """The utterances of `fraction`: they depend on the seed only, and a smaller fraction is a
        part of a larger one."""
        if self.fraction == 1.0:
            return cuts
        keys = np.array([derived_seed("fraction", self.seed, name) for name in cuts.ids()])
        count = max(1, round(self.fraction * len(cuts)))
        return cuts.select(np.sort(np.argsort(keys, kind="stable")[:count]))

    def _batch_limits(self, split: str) -> tuple[int | None, float | None]:
        """Most utterances and seconds of audio of a batch."""
        kind = "train" if split == self.train_split else "eval"
        size, seconds = (self.datarc.get(f"{kind}_batch_{unit}") for unit in ("size", "seconds"))
        if size is None and seconds is None:
            return (1, None) if kind == "train" else (None, EVAL_BATCH_SECONDS)
        return size, seconds

    def audio_digest(self, split: str) -> str | None:
        """Equal for splits whose evaluation reads the same parts of files in the same batches.

        None for a task with a loader of its own.

        Raises:
            UserError: as :meth:`prepare`.
        """
        if self.has_own_loader:
            return None
        self.prepare(split)
        digest = hashlib.blake2b(repr(self._batch_limits(split)).encode())
        for column in self._split_cuts[split].columns("path", "start", "duration"):
            digest.update(repr(column.to_pylist()).encode())
        return digest.hexdigest()

    @classmethod
    def conditions(cls, settings: Mapping[str, Any]) -> str:
        """Conditions in which published results of the task differ, for reports: split, scoring.

        Args:
            settings: the block `downstream_expert` of a config.

        Returns:
            A phrase such as `tested on Session1`; empty if there is nothing to add.
        """
        return ""

    @property
    def has_own_loader(self) -> bool:
        """Whether the class overrides `get_dataloader`."""
        return type(self).get_dataloader is not TaskExpert.get_dataloader

    @property
    def selecting_metric(self) -> Metric:
        """The metric that selects the best checkpoint."""
        return selecting_metric_of(type(self))

    @cached_property
    def corpus(self) -> Corpus:
        return self.make_corpus(self.datarc)

    @classmethod
    def make_corpus(cls, datarc: Mapping[str, Any]) -> Corpus:
        """The corpus of the settings, without reading it.

        The arguments of `corpus_type`, or with tables of `table_type`, are the settings of the same
        names; arguments without a default must be set.

        Raises:
            UserError: such a setting is missing, or the class has no `corpus_type`.
        """
        kind: Any = getattr(cls, "corpus_type", None)
        if datarc.get("manifests") is not None:
            kind = cls.table_type
            if kind is None:
                raise UserError(
                    f"The task {cls.name} takes no tables.",
                    where=f"{cls.name}.downstream_expert.datarc.manifests",
                    fix="Leave it out, or set the expert's `table_type`.",
                    code="not-supported",
                )
        if not isinstance(kind, type):
            raise cls._no_corpus()
        arguments = {}
        for key, parameter in inspect.signature(kind).parameters.items():
            if key in datarc and (datarc[key] is not None or parameter.default is None):
                arguments[key] = datarc[key]
            elif parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD:
                raise cls._not_set(key)
        corpus: Corpus = kind(**arguments)
        return corpus

    @classmethod
    def check_corpus_type(cls) -> None:
        """Require `corpus_type`, unless the class overrides `make_corpus` or `problems`.

        Raises:
            UserError: the class has no `corpus_type`.
        """
        own = any({"make_corpus", "problems"} & vars(base).keys() for base in _below(cls))
        if not own and not isinstance(getattr(cls, "corpus_type", None), type):
            raise cls._no_corpus()

    @classmethod
    def _no_corpus(cls) -> UserError:
        return UserError(
            "The expert declares no corpus.",
            where=place_of(cls, "corpus_type"),
            fix="Set it to the class of the corpus: corpus_type = MyCorpus.",
            code="expert-invalid",
        )

    @classmethod
    def _not_set(cls, key: str) -> UserError:
        where = f"{cls.name}.downstream_expert.datarc.{key}"
        defaults = settings_file(cls)
        if defaults is not None and not defaults.is_file():
            return UserError(
                f"The path of the corpus of {cls.name} is not set: the package has no config.yaml "
                f"beside `{cls.__module__}`.",
                where=f"{where}, or {defaults}",
                fix=add_settings_file(cls),
                code="corpus-unset",
            )
        return UserError(
            f"The path of the corpus of {cls.name} is not set.",
            where=where,
            fix="Set the path there, or pass --data DIR.",
            code="corpus-unset",
        )

    @classmethod
    def problems(cls, downstream_expert: Mapping[str, Any]) -> list[str]:
        """Problems that prevent reading the corpus, one sentence each; empty if there are none."""
        return cls.make_corpus(downstream_expert.get("datarc") or {}).problems()

    def read_labels(self) -> dict[str, Any]:
        """The label space of the corpus."""
        return dict(cached(self.corpus, self.cache_dir, "labels", self.corpus.label_space))


def _below(cls: type[TaskExpert]) -> list[type]:
    """The class and its bases below `TaskExpert`."""
    return [base for base in cls.__mro__ if base not in TaskExpert.__mro__]


class _Reader:
    """Reads a batch of cuts for an expert; called in loader workers."""

    def __init__(self, expert: TaskExpert, split: str, perturbation: Perturbation | None) -> None:
        self.expert = expert
        self.split = split
        self.perturbation = perturbation

    def __call__(self, cuts: Sequence[Any], generators: Sequence[torch.Generator]) -> tuple:
        items = [
            self.expert.read(self._perturbed(cut, generator), self.split, generator)
            for cut, generator in zip(cuts, generators, strict=True)
        ]
        return tuple(list(column) for column in zip(*items, strict=True))

    def _perturbed(self, cut: Any, generator: torch.Generator) -> Any:
        """The cut, with a random effect for :func:`load_waveform`."""
        if self.perturbation is None:
            return cut
        # Of its own: the other random choices are those of the unchanged waveform.
        own = torch.Generator().manual_seed(derived_seed("perturb", generator.initial_seed()))
        return fastcopy(cut, custom={**(cut.custom or {}), EFFECT: self.perturbation.draw(own)})
