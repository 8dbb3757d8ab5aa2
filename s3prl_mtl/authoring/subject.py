"""A task under test: its experts, features for them, and evaluations as the runner makes them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_mtl.config import Config, build_config, parse_tasks, resolve
from s3prl_mtl.data import MINIMUM_SAMPLES
from s3prl_mtl.errors import UserError
from s3prl_mtl.pieces import Piece
from s3prl_mtl.plugins import load_task
from s3prl_mtl.preflight import corpus_problems, raise_together
from s3prl_mtl.reading import Batch, EpochReader
from s3prl_mtl.reporting import report_split
from s3prl_mtl.task import Task
from s3prl_mtl.tracking import Report

WIDTH = 24
LAYERS = 3
FRAME_SAMPLES = 320
TRAINING_BATCHES = 16
"""How many batches of a training epoch are read, if nobody says otherwise."""

Records = dict[str, list[Any]]


class Subject:
    """A task under test.

    Its features are pseudo-random numbers that follow from the waveform, so that no encoder is
    needed and an utterance has the same ones wherever it is read.

    Args:
        name: of the task, as after `-d`.
        folder: for what its experts write.
        data: the folder of the corpora.
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
        self.config = self._config(data)
        (self.name,) = self.config["downstream"]
        self.expert_class: Any = load_task(self.name, self.config[self.name].get("folder"))
        problems = corpus_problems(self.config, {self.name: self.expert_class})
        raise_together(problems.get(self.name, []))

    # ------------------------------------------------------------------------- building

    def configured(self, overrides: str) -> Config:
        """The task's config with further settings, as after `-o`.

        Raises:
            UserError: the config refuses them.
        """
        return self._config(self.config["data"], overrides)

    def without_corpus(self) -> Config:
        """The task's config where there are no corpora."""
        return self._config(self.folder / "no" / "corpora")

    def _config(self, data: str | Path | None, more: str | None = None) -> Config:
        flags: dict[str, Any] = {"downstream": [self.word], "device": "cpu"}
        if data is not None:
            flags["data"] = str(data)
        overrides = ",,".join(part for part in (self.overrides, more) if part)
        return resolve(build_config(files=self.files, flags=flags, overrides=overrides))

    def build(self, config: Config | None = None, labels: Any = None, seed: int = 1) -> Any:
        """A new expert, built as the runner builds it.

        Args:
            config: another one than the task's.
            labels: the label space that stands in for the corpus.
            seed: of its weights.
        """
        config = config or self.config
        folder = self.folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "upstream_dim": WIDTH,
            "upstream_rate": FRAME_SAMPLES,
            "downstream_expert": config[self.name]["downstream_expert"],
            "expdir": str(folder),
            "cache_dir": config["cache_dir"],
            "seed": config["seed"],
        }
        if labels is not None:
            arguments["labels"] = labels
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.expert_class(**arguments)

    def task(self, expert: Any) -> Task:
        """The place of an expert in a run: its splits."""
        return Task.from_settings(self.name, expert, self.config[self.name], seed=self.seed)

    def splits(self, expert: Any) -> list[tuple[str, bool]]:
        """The splits of the task, and whether each is trained on; the training split is first."""
        task = self.task(expert)
        evaluated = {split: False for split in [*task.dev_splits, *task.test_splits]}
        trained = {task.train_split: True} if task.train_split else {}
        return list((trained | evaluated).items())

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    # -------------------------------------------------------------------------- reading

    def reader(
        self,
        expert: Any,
        split: str,
        training: bool,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
        first_round: int = 0,
    ) -> EpochReader:
        """The batches of the first epoch of a split, as the runner reads them."""
        return EpochReader(
            self.name,
            expert,
            split,
            seed=self.seed,
            shares=shares,
            num_shares=num_shares,
            first_round=first_round,
            training=training,
        )

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

        Each requires a gradient where gradients are enabled.
        """
        leading = (LAYERS,) if getattr(expert, "wants_hidden_states", False) else ()
        made = []
        for wav in wavs:
            waveform = torch.as_tensor(wav, dtype=torch.float32).contiguous()
            frames = max(1, (len(waveform) - MINIMUM_SAMPLES) // FRAME_SAMPLES + 1)
            digest = hashlib.blake2b(waveform.numpy().tobytes(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            feature = torch.randn(*leading, frames, WIDTH, generator=generator)
            made.append(feature.requires_grad_(torch.is_grad_enabled()))
        return made

    def loss(
        self,
        expert: Any,
        split: str,
        batch: Batch | Piece,
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

    @torch.no_grad()
    def evaluate(self, experts: Sequence[Any]) -> list[Report]:
        """Evaluate all evaluated splits, divided between experts that stand for processes.

        Args:
            experts: with the same weights; the first one measures.
        """
        reports = []
        task = self.task(experts[0])
        for expert in experts:
            self.task(expert)
            expert.eval()
        for split in dict.fromkeys([*task.dev_splits, *task.test_splits]):
            parts: dict[int, Records] = {}
            limit = self.limit(training=False)
            for share, expert in enumerate(experts):
                reader = self.reader(expert, split, False, (share,), len(experts))
                for batch in reader:
                    if limit is not None and batch.number >= limit:
                        break
                    parts[batch.number] = defaultdict(list)
                    self.loss(expert, split, batch, parts[batch.number])
            reports.append(self.report(experts[0], split, parts))
            for expert in experts[1:]:
                # What the one that measured remembers of it, the others take over.
                expert.load_state_dict(experts[0].state_dict())
                if hasattr(expert, "decision"):
                    expert.decision = dict(experts[0].decision)
        return reports

    def report(self, expert: Any, split: str, parts: Mapping[int, Records]) -> Report:
        """What the expert reports of batches, put together as the runner does."""
        together: Records = defaultdict(list)
        for number in sorted(parts):
            for key, values in parts[number].items():
                together[key] += list(values)
        numbers = list(range(len(parts)))
        return report_split(self.task(expert), split, together, 1, numbers, len(parts))
