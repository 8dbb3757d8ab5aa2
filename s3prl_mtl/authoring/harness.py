"""A task under test: its experts, features for them, and evaluations as the runner makes them."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_mtl.authoring.fake_upstream import FRAME_SAMPLES, WIDTH, pseudo_encoding
from s3prl_mtl.authoring.processes import Answer
from s3prl_mtl.config import Config, RunConfig, build_config, parse_tasks, resolve
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.distributed.placement import data_parallel
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.tracker import Report
from s3prl_mtl.training.evaluation import Evaluator, Records
from s3prl_mtl.training.preflight import corpus_problems, raise_together
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.task import Task

TRAINING_BATCHES = 16
"""How many batches of a training epoch are read, if nobody says otherwise."""


class NeedsData(Exception):
    """A line cannot be checked because nobody said where the corpora are."""


class Subject:
    """A task under test.

    Everything is as in a run but for the encoder, which gives pseudo-random numbers that follow
    from the waveform: no weights are needed.

    Args:
        name: of the task, as after `-d`.
        folder: for what its experts write.
        data: the folder of the corpora. Without one, what needs the corpus of a task whose settings
            mention `${data}` raises :class:`NeedsData`.
        files: YAML files of settings, as after `-c`.
        overrides: settings, as after `-o`.
        batches: how many batches of a split are read at most; None reads `TRAINING_BATCHES` of the
            training split and all of the others.

    Raises:
        UserError: there is no such task, its settings are wrong, or its corpus is not there.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        data: str | Path | None = None,
        files: Sequence[str | Path] = (),
        overrides: str | None = None,
        batches: int | None = None,
    ) -> None:
        words = parse_tasks(name, flag="NAME")
        if len(words) > 1:
            raise UserError(f"{name!r} names {len(words)} tasks.", where="NAME", fix="Check one.")
        (self.word,) = words
        self.folder = folder
        self.files = list(files)
        self.overrides = overrides
        self.batches = batches
        self.encoding = pseudo_encoding()
        self.on_two_ranks: list[Answer] | None = None
        """What two processes found out about it, once they did."""
        self.data = None if data is None else str(data)
        unresolved = self._unresolved(self.data)
        (self.name,) = unresolved["downstream"]
        self.has_data = unresolved["data"] != str(self._nowhere) or "${data}" not in json.dumps(
            unresolved[self.name]
        )
        """Whether the corpus is there, as far as the settings say."""
        self.config = resolve(unresolved)
        block = self.config.tasks[self.name]
        self.expert_class: Any = load_task(self.name, block.package, folder=block.folder)
        if self.has_data:
            problems = corpus_problems(self.config, {self.name: self.expert_class})
            raise_together(problems.get(self.name, []))

    def again(self) -> partial[Subject]:
        """What makes this subject once more, in another process."""
        return partial(
            Subject,
            self.word,
            self.folder,
            data=self.data,
            files=self.files,
            overrides=self.overrides,
            batches=self.batches,
        )

    # ------------------------------------------------------------------------- building

    def configured(self, overrides: str) -> RunConfig:
        """The task's config with further settings, as after `-o`.

        Raises:
            UserError: the config refuses them.
        """
        return resolve(self._unresolved(str(self.config.data), overrides, DeferredLog()))

    def without_corpus(self) -> RunConfig:
        """The task's config where there are no corpora."""
        return resolve(self._unresolved(str(self._nowhere), deferred=DeferredLog()))

    @property
    def _nowhere(self) -> Path:
        return self.folder / "no" / "corpora"

    def _unresolved(
        self, data: str | None, more: str | None = None, deferred: DeferredLog | None = None
    ) -> Config:
        # The first time it is logged what is to be said of the config, and no more after that.
        flags: dict[str, Any] = {"downstream": [self.word], "device": "cpu"}
        if data is not None:
            flags["data"] = data
        # Where nothing else says it, neither a file nor an override: it is the first of the layers.
        missing = data is None and not os.environ.get("SUPERB_DATA")
        base = {"data": str(self._nowhere)} if missing else None
        overrides = ",,".join(part for part in (self.overrides, more) if part)
        return build_config(self.files, flags, overrides, base, deferred)

    def build(self, config: RunConfig | None = None, labels: Any = None, seed: int = 1) -> Any:
        """A new expert, built as the runner builds it.

        Args:
            config: another one than the task's.
            labels: the label space that stands in for the corpus.
            seed: of its weights.

        Raises:
            NeedsData: there is no corpus, and it is not built without.
        """
        config = config or self.config
        folder = self.folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "upstream_dim": WIDTH,
            "upstream_rate": FRAME_SAMPLES,
            "downstream_expert": config.tasks[self.name].downstream_expert,
            "expdir": str(folder),
            "cache_dir": config.cache_dir and str(config.cache_dir),
            "seed": config.seed,
        }
        if labels is not None:
            arguments["labels"] = labels
        try:
            with RandomStream(seed).active():
                return self.expert_class(**arguments)
        except Exception as error:
            if self.has_data or labels is not None:
                raise
            known = isinstance(error, UserError | OSError)
            reason = "" if known else f" ({type(error).__name__}: {error})"
            raise NeedsData(f"it is not built without its corpus{reason}") from error

    def task(self, expert: Any) -> Task:
        """The place of an expert in a run: its splits."""
        return Task.from_settings(self.name, expert, self.config.tasks[self.name], seed=self.seed)

    def splits(self, expert: Any) -> list[tuple[str, bool]]:
        """The splits of the task, and whether each is trained on; the training split is first."""
        task = self.task(expert)
        evaluated = {split: False for split in [*task.dev_splits, *task.test_splits]}
        trained = {task.train_split: True} if task.train_split else {}
        return list((trained | evaluated).items())

    @property
    def seed(self) -> int:
        return self.config.seed

    # -------------------------------------------------------------------------- reading

    def reader(
        self,
        expert: Any,
        split: str,
        training: bool,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
        first_round: int = 0,
        reader_class: type[EpochReader] = EpochReader,
    ) -> EpochReader:
        """The batches of the first epoch of a split, as the runner reads them.

        Raises:
            NeedsData: there is no corpus.
        """
        self._need_corpus()
        return reader_class(
            self.name,
            expert,
            split,
            seed=self.seed,
            shares=shares,
            num_shares=num_shares,
            first_round=first_round,
            training=training,
        )

    def _need_corpus(self) -> None:
        if not self.has_data:
            raise NeedsData("it reads the corpus")

    def some(self, reader: EpochReader, training: bool) -> Iterator[Batch]:
        """As many batches of a reader as are to be looked at, each once and in order."""
        return islice(reader, self.limit(training))

    def limit(self, training: bool) -> int | None:
        if self.batches is None:
            return TRAINING_BATCHES if training else None
        return self.batches

    def first_batch(self, expert: Any, split: str, training: bool) -> Batch:
        """The first batch of a split.

        Raises:
            UserError: there is none.
        """
        for batch in self.reader(expert, split, training):
            return batch
        raise UserError(f"The split {split!r} has no batch.")

    # ------------------------------------------------------------------------- forward

    def features(self, expert: Any, wavs: Sequence[Any]) -> list[Tensor]:
        """Features (frames_i, WIDTH), or hidden states (LAYERS, frames_i, WIDTH) if it wants them.

        Each keeps its gradient where gradients are enabled.
        """
        features = self.encoding.inputs(expert, wavs)
        for feature in features:
            if feature.requires_grad:
                feature.retain_grad()
        return features

    def loss(
        self,
        expert: Any,
        split: str,
        batch: Batch,
        records: Records | None = None,
        features: list[Tensor] | None = None,
    ) -> Any:
        """What the expert's `forward` gives for a batch."""
        task = self.task(expert)
        features = self.features(expert, batch.wavs) if features is None else features
        evaluated = split != task.train_split
        number = {"batch_id": batch.number} if task.takes_batch_id and evaluated else {}
        records = defaultdict(list) if records is None else records
        return expert(split, features, *batch.others, records=records, **number)

    def evaluate(self, expert: Any, world: World) -> list[Report]:
        """Evaluate all evaluated splits, each rank its share, with the evaluator of the runner.

        Args:
            expert: of this rank, with the same weights on all.
            world: all ranks; they must all call this.

        Returns:
            the reports on the first rank, nothing on the others.

        Raises:
            NeedsData: there is no corpus.
        """
        self._need_corpus()
        task = self.task(expert)
        run = Run(
            [self.name],
            self.seed,
            world,
            data_parallel([self.name], world.size),
            {self.name: world},
            self.encoding,
            {self.name: task},
            step=1,
        )
        evaluator = Evaluator(run, self.limit(training=False), log_level=logging.DEBUG)
        splits = dict.fromkeys([*task.dev_splits, *task.test_splits])
        return evaluator.evaluate([(self.name, split) for split in splits])
