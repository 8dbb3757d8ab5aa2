"""The contract of a task, and the base class that the built-in tasks share."""

from __future__ import annotations

import inspect
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lhotse import CutSet
from torch import Tensor, nn

from s3prl_mtl.data import Corpus, default_cache_dir, load_cuts, load_waveform, make_loader
from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.metric import (
    Metric,
    check_declarations,
    first_score,
    place_of,
    selecting_metric_of,
    settings_file,
)
from s3prl_mtl.tasks.settings import CheckedSettings

__all__ = ["Metric", "ScalarLogger", "TaskExpert"]

logger = logging.getLogger(__name__)


class ScalarLogger(Protocol):
    """What an expert reports its metrics to: TensorBoard's `SummaryWriter` is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


class TaskExpert(CheckedSettings, nn.Module, ABC):
    """One task of a multi-task run: its corpus, its head, its loss and its metrics.

    The public methods are s3prl's `DownstreamExpert`, unchanged: the runner knows nothing else of
    a task, and any class that has them can be trained. This base class leaves to a task only what
    is its own: `corpus_type`, `build_head`, `read`, `forward` and `measure`. One that also defines
    `predict(features, lengths_samples)`, with B features (T_i, D) and the samples of each waveform
    as :meth:`condition` left it, answers without labels: a dict of plain JSON for each utterance.

    Args:
        upstream_dim: width D of the features.
        upstream_rate: samples (at 16 kHz) between two frames of the features; 320 for HuBERT.
        downstream_expert: the task's settings: `datarc` says where the corpus is and how it is
            batched, `modelrc` (`model` for `pr` and `sf`) describes the head.
        expdir: folder for what the task writes besides its metrics.
        labels: the label space (see `docs/architecture.md`), which stands in for the corpus. By
            default it is read from the corpus.
        cache_dir: where scanned manifests are kept.
        seed: of the order of training utterances and of random crops.
        runner_arguments: whatever else the runner passes to every expert. s3prl's contract has
            them; no setting of the task is among them.

    Raises:
        UserError: the settings or the corpus are not usable, or what the class declares.
    """

    name: ClassVar[str]
    """The task's word after `-d`."""
    corpus_type: ClassVar[type[Corpus]]
    train_split: str = "train"
    dev_split: str = "dev"
    """The split whose metric selects the checkpoint that is kept as best."""
    test_split: str = "test"
    metrics: ClassVar[tuple[Metric, ...]]
    """The first one is what tables show."""
    selected_by: ClassVar[str | None] = None
    """The metric that selects the best checkpoint, when it is not the first one."""
    worst_score: ClassVar[float | None] = None
    """Where the buffer `best_score` starts; only what is better is kept. None: the worst value of
    the metric that selects, infinity where lower is better and else the lower end of its range."""

    wants_hidden_states: ClassVar[bool] = False
    """Whether `forward` and `predict` get, in the place of features, the encoder's hidden states:
    (L, T_i, D) an utterance, the input of the first layer and the output of each."""
    is_trained: ClassVar[bool] = True
    """False: there is nothing to learn, so no checkpoint of a run has to hold the task, and any
    run can be evaluated on it with `-m evaluate`. It is no task to train with."""

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
        check_declarations(type(self))
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
        """What the head chose on its dev split, such as a threshold; saved with it."""
        self._split_cuts: dict[str, CutSet] = {}
        self.register_buffer("best_score", torch.full((1,), first_score(type(self))))
        self.build_head()

    # ------------------------------------------------------------- a task writes these

    @abstractmethod
    def build_head(self) -> None:
        """Create the head's modules from `self.settings` and `self.labels`."""

    @abstractmethod
    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        """The split's metrics (fractions, not percent) from what `forward` recorded."""

    def target(self, labels: Mapping[str, Any]) -> Any:
        """What the loss needs of one utterance's labels. Runs in a loader worker."""
        raise NotImplementedError(f"{type(self).__name__} defines neither `target` nor `read`")

    def condition(self, waveform: Tensor) -> Tensor:
        """A waveform as the head expects it in evaluation and use: its level, its silences.

        Args:
            waveform: (samples,) at 16 kHz.

        Returns:
            Waveform (other_samples,).
        """
        return waveform

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        """The utterance's samples, float32 (samples,). Tasks that crop override it."""
        return self.condition(load_waveform(cut))

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        """One utterance as `forward` gets it: its waveform, then one value for each label."""
        return self.waveform(cut, split, generator), self.target(cut.custom["labels"])

    def cuts(self, split: str) -> CutSet:
        """The utterances of a split. Tasks that check or change them override it."""
        return load_cuts(self.corpus, split, self.cache_dir)

    def draw_weights(self, split: str, cuts: CutSet) -> list[float] | None:
        """How often each utterance is drawn, relative to the others; None: all once."""
        return None

    # ---------------------------------------------------------------- s3prl's contract

    def get_dataloader(
        self,
        split: str,
        epoch: int = 0,
        skip_batches: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> Iterable[tuple[Any, ...]]:
        """The batches of a split, each `(wavs, *labels)`, every one a list with an entry each.

        Args:
            split: a name that the task's corpus knows.
            epoch: with the seed it settles the order and every random crop.
            skip_batches: how many of this loader's first batches to leave out, unread.
            shares: which of the epoch's shares to give, one batch of each in turn; all by default.
            num_shares: equal parts that the epoch is cut into, mostly one for each process.
        """
        self.prepare(split)
        cuts = self._split_cuts[split]
        training = split == self.train_split
        batch_size = self.datarc.get("train_batch_size" if training else "eval_batch_size", 1)
        return make_loader(
            cuts,
            _Reader(self, split),
            batch_size=batch_size,
            shuffle=training,
            epoch=epoch,
            seed=self.seed,
            weights=self.draw_weights(split, cuts),
            bucketed=training and bool(self.datarc.get("bucketed", False)),
            num_workers=self.datarc.get("num_workers", 0),
            skip_batches=skip_batches,
            shares=shares,
            num_shares=num_shares,
        )

    def log_records(
        self,
        split: str,
        records: Mapping[str, Sequence[Any]],
        logger: ScalarLogger,
        global_step: int,
        batch_ids: Sequence[int] = (),
        total_batch_num: int = 0,
    ) -> list[str]:
        """Report the metrics of a split, and the names of the checkpoints that they earn.

        Of no batch there is nothing to report: every loss of a window may have been dropped.
        """
        if not any(len(entries) for entries in records.values()):
            return []
        values = self.measure(split, records)
        losses = records.get("loss") or []
        if losses:
            values["loss"] = sum(losses) / len(losses)
        for metric, value in values.items():
            logger.add_scalar(f"{self.name}/{split}-{metric}", value, global_step=global_step)
        chosen = self.selecting_metric
        if split != self.dev_split or chosen.name not in values:
            return []
        # As the buffer will hold it: the same value again is no improvement by a rounding error.
        score = torch.tensor(values[chosen.name], dtype=torch.float32).item()
        if not math.isfinite(score) or not chosen.improves(score, self.best_score.item()):
            return []
        self.best_score.fill_(score)
        return [f"{split}-best.ckpt"]

    # ------------------------------------------------------------------------ the rest

    def prepare(self, split: str) -> None:
        """Scan a split, so that what is wrong with it comes up now and not when it is needed.

        Raises:
            UserError: there is no such split, or its corpus cannot be read.
        """
        if split not in self._split_cuts:
            # Listing the folder of a large corpus takes seconds: once a run is enough.
            self._split_cuts[split] = self.cuts(split)

    def utterances(self, split: str) -> int:
        """How many utterances a split has.

        Raises:
            UserError: as :meth:`prepare`.
        """
        self.prepare(split)
        return len(self._split_cuts[split])

    @property
    def selecting_metric(self) -> Metric:
        """The metric that decides which checkpoint is the task's best."""
        return selecting_metric_of(type(self))

    @cached_property
    def corpus(self) -> Corpus:
        return self.make_corpus(self.datarc)

    @classmethod
    def make_corpus(cls, datarc: Mapping[str, Any]) -> Corpus:
        """The corpus that the settings name, without reading anything of it.

        The arguments of `corpus_type` are the settings of the same names; those without a default
        must be set.

        Raises:
            UserError: one of these is not set, or the class has no `corpus_type`.
        """
        if not isinstance(getattr(cls, "corpus_type", None), type):
            raise cls._no_corpus()
        arguments = {}
        for key, parameter in inspect.signature(cls.corpus_type).parameters.items():
            if key in datarc and (datarc[key] is not None or parameter.default is None):
                arguments[key] = datarc[key]
            elif parameter.default is parameter.empty:
                raise cls._not_set(key)
        return cls.corpus_type(**arguments)

    @classmethod
    def check_corpus_type(cls) -> None:
        """Refuse a class without `corpus_type`, unless it makes or checks its corpus by itself.

        Raises:
            UserError: there is none.
        """
        own = any({"make_corpus", "problems"} & vars(base).keys() for base in _below(cls))
        if not own and not isinstance(getattr(cls, "corpus_type", None), type):
            raise cls._no_corpus()

    @classmethod
    def _no_corpus(cls) -> UserError:
        return UserError(
            "The expert does not say what its corpus is.",
            where=place_of(cls, "corpus_type"),
            fix="It is the class of the corpus: corpus_type = MyCorpus.",
            code="expert-invalid",
        )

    @classmethod
    def _not_set(cls, key: str) -> UserError:
        where = f"{cls.name}.downstream_expert.datarc.{key}"
        defaults = settings_file(cls)
        if defaults is not None and not defaults.is_file():
            package = cls.__module__.partition(".")[0]
            return UserError(
                f"Where the corpus of {cls.name} lies is not set: the package has no config.yaml "
                f"beside `{cls.__module__}`.",
                where=f"{where}, or {defaults}",
                fix="A wheel holds it if pyproject.toml says so: [tool.setuptools.package-data] "
                f'{package} = ["*.yaml"].',
                code="corpus-unset",
            )
        return UserError(
            f"Where the corpus of {cls.name} lies is not set.",
            where=where,
            fix="Set the path there, or pass --data DIR.",
            code="corpus-unset",
        )

    @classmethod
    def problems(cls, downstream_expert: Mapping[str, Any]) -> list[str]:
        """What keeps the task's corpus from being read, one sentence each; empty if nothing."""
        return cls.make_corpus(downstream_expert.get("datarc") or {}).problems()

    def read_labels(self) -> dict[str, Any]:
        """The label space of the corpus."""
        return self.corpus.label_space()


def _below(cls: type[TaskExpert]) -> list[type]:
    """The class and those between it and `TaskExpert`."""
    return [base for base in cls.__mro__ if base not in TaskExpert.__mro__]


class _Reader:
    """Reads a batch of cuts for an expert, inside a loader worker."""

    def __init__(self, expert: TaskExpert, split: str) -> None:
        self.expert = expert
        self.split = split

    def __call__(self, cuts: Sequence[Any], generators: Sequence[torch.Generator]) -> tuple:
        items = [
            self.expert.read(cut, self.split, generator)
            for cut, generator in zip(cuts, generators, strict=True)
        ]
        return tuple(list(column) for column in zip(*items, strict=True))
