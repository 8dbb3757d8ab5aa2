"""Run a task under test as the runner does, with a fake upstream that needs no weights."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.config import Config, RunConfig, build_config, parse_tasks, resolve
from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.data.epoch_reader import Batch, EpochReader
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.distributed.shares import data_parallel
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.recorder import Report
from s3prl_mtl.training.build import build_expert
from s3prl_mtl.training.evaluation import Evaluator
from s3prl_mtl.training.preflight import choose_root, corpus_problems
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.task import Records, Task
from s3prl_mtl.upstreams import Featurizer, HiddenStates, Mask, MaskedUtterance, Upstream
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder, layers, wants_hidden_states

TRAINING_BATCHES = 16
"""Maximum number of batches read of a training epoch, by default."""

WIDTH = 24
LAYERS = 3
FRAME_SAMPLES = 320


class FakeUpstream(Upstream):
    """Hidden states drawn from a normal distribution, seeded by the waveform.

    The hidden states of an utterance do not depend on its batch. They require a gradient where
    gradients are enabled.
    """

    hidden_size = WIDTH
    num_hidden_states = LAYERS
    downsample_rate = FRAME_SAMPLES
    can_mask = True

    def num_frames(self, samples: int) -> int:
        return frame_count(samples)

    def forward(
        self, wavs: list[Tensor], masks: Sequence[Mask | None] | None = None
    ) -> HiddenStates:
        """Waveforms (samples_i,) -> packed states (LAYERS, sum of frames_i, WIDTH), whatever is
        masked."""
        states = [_noise(wav) for wav in wavs]
        packed = torch.cat(states, dim=1).requires_grad_(torch.is_grad_enabled())
        squares = None if masks is None else packed[0].square().mean(-1)
        return HiddenStates(packed, [state.shape[1] for state in states], squares=squares)


def frame_count(samples: int) -> int:
    """Frames of the fake upstream for a waveform."""
    return max(1, (samples - MINIMUM_SAMPLES) // FRAME_SAMPLES + 1)


def _noise(wav: Tensor) -> Tensor:
    frames = frame_count(len(wav))
    digest = hashlib.blake2b(wav.contiguous().numpy().tobytes(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(LAYERS, frames, WIDTH, generator=generator)


def fake_encoder() -> SharedEncoder:
    """The fake upstream as the encoder of a run; features are its last hidden state."""
    upstream = FakeUpstream()
    featurizer = Featurizer(upstream, "last_hidden_state")
    return SharedEncoder(upstream, featurizer, torch.device("cpu"), freeze=False, bf16=False)


def states_of(entry: Tensor | MaskedUtterance) -> Tensor:
    """The tensor of an entry of an expert's input."""
    return entry.states if isinstance(entry, MaskedUtterance) else entry


class NeedsData(Exception):
    """A clause cannot be checked without the folder of the corpora."""


class TaskHarness:
    """A task under test, run as in training but with the fake upstream.

    Args:
        name: of the task, as after `-d`.
        folder: for the files of its experts.
        data: the folder of the corpora, or several, of which the first one with the corpus is used.
            Without it, reading the corpus of a task that has `${data}` in its settings raises
            :class:`NeedsData`.
        files: YAML files of settings, as after `-c`.
        overrides: settings, as after `-o`.
        batches: maximum number of batches to read of a split; None reads `TRAINING_BATCHES` of the
            training split and all of the others.

    Raises:
        UserError: the task does not exist, its settings are wrong, or its corpus is missing.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        data: str | Path | Sequence[str | Path] | None = None,
        files: Sequence[str | Path] = (),
        overrides: str | None = None,
        batches: int | None = None,
    ) -> None:
        specs = parse_tasks(name, flag="NAME")
        if len(specs) > 1:
            raise UserError(
                f"{name!r} names {len(specs)} tasks.",
                where="NAME",
                fix="Check one task at a time.",
                code="invalid-value",
            )
        (self.task_spec,) = specs
        self.folder = folder
        self.files = list(files)
        self.overrides = overrides
        self.batches = batches
        self.encoder = fake_encoder()
        roots = [data] if data is None or isinstance(data, str | Path) else list(data)
        choose_root(roots, self._use)

    def _use(self, data: str | Path | None) -> tuple[None, list[UserError]]:
        """Configure the task with a data folder; return the problems of its corpus there."""
        self.data = None if data is None else str(data)
        unresolved = self._unresolved(self.data)
        (self.name,) = unresolved["downstream"]
        self.has_data = unresolved["data"] != str(self._no_corpora) or "${data}" not in json.dumps(
            unresolved[self.name]
        )
        """Whether the settings name a corpus."""
        self.config = resolve(unresolved)
        block = self.config.tasks[self.name]
        self.expert_class: Any = load_task(self.name, block.package, folder=block.folder)
        if not self.has_data:
            return None, []
        problems = corpus_problems(self.config, {self.name: self.expert_class})
        return None, problems.get(self.name, [])

    def factory(self) -> partial[TaskHarness]:
        """A picklable function that makes this harness in another process."""
        return partial(
            TaskHarness,
            self.task_spec,
            self.folder,
            data=self.data,
            files=self.files,
            overrides=self.overrides,
            batches=self.batches,
        )

    # ------------------------------------------------------------------------- building

    def configure(self, overrides: str) -> RunConfig:
        """The task's config with further settings, as after `-o`.

        Raises:
            UserError: the config refuses them.
        """
        return resolve(self._unresolved(str(self.config.data), overrides, DeferredLog()))

    def without_corpus(self) -> RunConfig:
        """The task's config with a folder of corpora that does not exist."""
        return resolve(self._unresolved(str(self._no_corpora), deferred=DeferredLog()))

    @property
    def _no_corpora(self) -> Path:
        return self.folder / "no" / "corpora"

    def _unresolved(
        self, data: str | None, more: str | None = None, deferred: DeferredLog | None = None
    ) -> Config:
        # Warnings about the config are logged for the first config only (`deferred` is None).
        flags: dict[str, Any] = {"downstream": [self.task_spec], "device": "cpu"}
        if data is not None:
            flags["data"] = data
        # As the lowest layer, so that a file or an override may still set `data`.
        missing = data is None and not os.environ.get("SUPERB_DATA")
        base = {"data": str(self._no_corpora)} if missing else None
        overrides = ",,".join(part for part in (self.overrides, more) if part)
        return build_config(self.files, flags, overrides, base, deferred)

    def build(self, config: RunConfig | None = None, labels: Any = None, seed: int = 1) -> Any:
        """A new expert, built as the runner builds it.

        Args:
            config: in place of the task's.
            labels: the label space, in place of the corpus.
            seed: of the weights.

        Raises:
            NeedsData: there is no corpus, and building the expert without it failed.
        """
        config = config or self.config
        try:
            with RandomStream(seed).active():
                return build_expert(
                    self.expert_class,
                    config,
                    self.name,
                    self.folder,
                    upstream_dim=WIDTH,
                    upstream_rate=FRAME_SAMPLES,
                    labels=labels,
                    upstream=self.encoder.upstream,
                )
        except Exception as error:
            if self.has_data or labels is not None:
                raise
            known = isinstance(error, UserError | OSError)
            reason = "" if known else f" ({type(error).__name__}: {error})"
            raise NeedsData(f"it cannot be built without its corpus{reason}") from error

    def task(self, expert: Any) -> Task:
        """The expert with its splits, as a run holds it."""
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
        self._require_corpus()
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

    def _require_corpus(self) -> None:
        if not self.has_data:
            raise NeedsData("it reads the corpus")

    def limited(self, reader: EpochReader, training: bool) -> Iterator[Batch]:
        """The first batches of a reader, at most :meth:`limit`."""
        return islice(reader, self.limit(training))

    def limit(self, training: bool) -> int | None:
        """Maximum number of batches to read of a split; None: all."""
        if self.batches is None:
            return TRAINING_BATCHES if training else None
        return self.batches

    def first_batch(self, expert: Any, split: str, training: bool) -> Batch:
        """The first batch of a split.

        Raises:
            UserError: the split has no batch.
        """
        for batch in self.reader(expert, split, training):
            return batch
        raise UserError(f"The split {split!r} has no batch.", code="corpus-empty")

    # ------------------------------------------------------------------------- forward

    def inputs(self, expert: Any, split: str, batch: Batch) -> list[Any]:
        """The inputs of the expert's `forward` for the waveforms of a batch.

        Returns:
            Features (frames_i, WIDTH); hidden states (LAYERS, frames_i, WIDTH) if the expert wants
            them; or masked utterances if it draws masks. Each tensor retains its gradient where
            gradients are enabled.
        """
        inputs = self.encoder.inputs(expert, split, batch.wavs, batch.others)
        for tensor in map(states_of, inputs):
            if tensor.requires_grad:
                tensor.retain_grad()
        return inputs

    def prediction_inputs(self, expert: Any, wavs: Sequence[Any]) -> list[Tensor]:
        """The inputs of the expert's `predict` for waveforms, without masks."""
        hidden = self.encoder.hidden_states(wavs)
        return layers(hidden) if wants_hidden_states(expert) else self.encoder.weighted(hidden)

    def loss(
        self,
        expert: Any,
        split: str,
        batch: Batch,
        records: Records | None = None,
        inputs: list[Any] | None = None,
    ) -> Any:
        """The output of the expert's `forward` for a batch."""
        task = self.task(expert)
        inputs = self.inputs(expert, split, batch) if inputs is None else inputs
        evaluated = split != task.train_split
        number = {"batch_id": batch.number} if task.takes_batch_id and evaluated else {}
        records = defaultdict(list) if records is None else records
        return expert(split, inputs, *batch.others, records=records, **number)

    def evaluate(self, expert: Any, world: World) -> list[Report]:
        """Evaluate all dev and test splits with the runner's evaluator, each rank its share.

        Args:
            expert: of this rank, with the same weights on all ranks.
            world: all ranks; each of them must call this.

        Returns:
            The reports on rank 0, an empty list on the others.

        Raises:
            NeedsData: there is no corpus.
            UserError: a split cannot be scored.
        """
        self._require_corpus()
        task = self.task(expert)
        run = Run(
            names=[self.name],
            seed=self.seed,
            world=world,
            placement=data_parallel([self.name], world.size),
            groups={self.name: world},
            encoder=self.encoder,
            tasks={self.name: task},
            step=1,
        )
        evaluator = Evaluator(run, self.limit(training=False), log_level=logging.DEBUG)
        splits = dict.fromkeys([*task.dev_splits, *task.test_splits])
        reports = evaluator.evaluate([(self.name, split) for split in splits])
        problems = [report.problem for report in reports if report.problem is not None]
        world.raise_on_all_ranks(problems[0] if problems else None)
        return reports
