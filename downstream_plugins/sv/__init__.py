"""Speaker verification on VoxCeleb1."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream_plugins.sv.corpus import Trial, VoxCeleb1Verification, preprocess
from downstream_plugins.sv.table import VerificationTable
from s3prl_mtl import Chunk, Metric, TaskExpert
from s3prl_mtl.data import MINIMUM_SAMPLES, Finding, Manifest, load_waveform, random_crop
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.metrics import equal_error_rate
from s3prl_mtl.nn import AMSoftmaxLoss, XVector, pad_features

logger = logging.getLogger(__name__)

ONLY_CHOICES = {
    "module": "XVector",
    "agg_module": "SP",
    "utter_module": "UtteranceExtractor",
    "ObjectiveLoss": "AMSoftmaxLoss",
}
"""Settings of s3prl that name parts of the head; only SUPERB's choices are supported."""


class SpeakerVerification(TaskExpert):
    """SUPERB's `sv`: x-vectors trained to classify the training speakers, compared by cosine.

    The loaders of dev and test give every utterance of the trials once; :meth:`measure` scores the
    trials from their embeddings.
    """

    name = "sv"
    corpus_type = VoxCeleb1Verification
    table_type = VerificationTable
    corpus: VoxCeleb1Verification | VerificationTable
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("eer", "lower", "EER"),)
    worst_score = 100.0

    def build_head(self) -> None:
        for key, choice in ONLY_CHOICES.items():
            self.choice_setting("modelrc", key, choices=(choice,))
        speakers = self.label_list("speakers")
        self.speaker_numbers = {speaker: number for number, speaker in enumerate(speakers)}
        self.trials: dict[str, list[Trial]] = {}
        width = self.size_setting("modelrc", "input_dim")
        layers = ("modelrc", "module_config", "XVector")
        margin = ("modelrc", "LossConfig", "AMSoftmaxLoss")
        self.connector = nn.Linear(self.upstream_dim, width)
        self.model = XVector(
            width,
            agg_dim=self.size_setting(*layers, "agg_dim"),
            dropout_p=float(self.setting(*layers, "dropout_p")),
            batch_norm=bool(self.setting(*layers, "batch_norm")),
        )
        self.objective = AMSoftmaxLoss(
            width,
            len(speakers),
            s=float(self.setting(*margin, "s")),
            m=float(self.setting(*margin, "m")),
        )

    # -------------------------------------------------------------------------- reading

    def cuts(self, split: str) -> Manifest:
        """The utterances of a split.

        Raises:
            UserError: the head has no output for the speaker of a training utterance.
        """
        cuts = super().cuts(split)
        if split == self.train_split:
            for labels in cuts.distinct_labels():
                self.target(labels)
        return cuts

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Speakers of the head without a training utterance, such as of more than 2 s; trials that
        cannot be scored, and trials of one kind only."""
        findings = super().findings(split, cuts)
        if split != self.train_split:
            findings += self._trial_findings(split, cuts)
        else:
            trained = {labels["speaker"] for labels in cuts.distinct_labels()}
            speakers = self.labels["speakers"]
            missing = [speaker for speaker in speakers if speaker not in trained]
            if missing:
                findings.append(
                    Finding(
                        f"{len(missing)} of {len(speakers)} speakers have no training utterance "
                        "that is usable and longer than 2 s without its silence.",
                        where=f"speaker {missing[0]}",
                        fix="Add longer utterances of them, unless their absence is intended.",
                        code="corpus-incomplete",
                    )
                )
        return findings

    def target(self, labels: Mapping[str, Any]) -> int:
        """The number of the speaker among the training speakers."""
        speaker = labels["speaker"]
        if speaker not in self.speaker_numbers:
            raise UserError(
                f"sv: the head has no output for the speaker {speaker!r}: it is not among the "
                f"{len(self.speaker_numbers)} that it was built for.",
                where="the label space's 'speakers'",
                fix=nearest(str(speaker), list(self.speaker_numbers)),
                code="label-unknown",
            )
        return self.speaker_numbers[speaker]

    def condition(self, waveform: Tensor) -> Tensor:
        """Apply a gain of -3 dB and remove silence.

        If the result is too short for the x-vector, the untrimmed utterance is used, and repeated
        if that is too short as well.
        """
        return self._long_enough(preprocess(waveform), waveform)

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        """Preprocess as :meth:`condition`; in training, crop to `max_timestep` samples."""
        untrimmed = load_waveform(cut)
        waveform = preprocess(untrimmed)
        longest = self.datarc.get("max_timestep")
        if split == self.train_split and longest is not None:
            waveform = random_crop(waveform, longest, generator)
        return self._long_enough(waveform, untrimmed)

    def _long_enough(self, waveform: Tensor, untrimmed: Tensor) -> Tensor:
        needed = XVector.min_frames * self.upstream_rate + MINIMUM_SAMPLES
        if len(waveform) < needed:
            waveform = untrimmed.repeat(math.ceil(needed / len(untrimmed)))
        return waveform

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        training = split == self.train_split
        speaker = self.target(cut.custom["labels"]) if training else None
        return self.waveform(cut, split, generator), cut.id, speaker

    def from_s3prl(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        """Warn that the outputs for the training speakers are in another order."""
        if "objective.W" in head:
            logger.warning(
                "sv: the columns of objective.W of a head of s3prl belong to the speakers in the "
                "order in which its file system listed them; here they are sorted. Scores do not "
                "depend on it; training has to learn the columns again."
            )
        return head

    def _trial_findings(self, split: str, cuts: Manifest) -> list[Finding]:
        trials = self._trials(split)
        usable = set(cuts.ids())
        scored = [t for t in trials if t.first_id in usable and t.second_id in usable]
        targets = sum(trial.label for trial in scored)
        where = f"trials of split {split!r}"
        if not 0 < targets < len(scored):
            return [
                Finding(
                    f"Split {split!r} has {targets} target and {len(scored) - targets} impostor "
                    f"trials of usable utterances ({len(trials)} trials in all): the equal error "
                    "rate needs both.",
                    where=where,
                    fix="Check the list of trials and the audio that it names.",
                    code="undefined-metric",
                    certain=True,
                )
            ]
        if len(scored) == len(trials):
            return []
        return [
            Finding(
                f"{len(trials) - len(scored)} of {len(trials)} trials of split {split!r} are left "
                "out, because an utterance is not usable.",
                where=where,
                fix="Complete the audio that the list of trials names.",
                code="corpus-incomplete",
            )
        ]

    def _trials(self, split: str) -> list[Trial]:
        if split not in self.trials:
            self.trials[split] = self.corpus.trials(split)
        return self.trials[split]

    # -------------------------------------------------------------------------- scoring

    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        utterance_ids: Sequence[str] | None,
        labels: Sequence[Any],
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """The loss of a training batch, a scalar; 0 for other splits.

        Args:
            split: the batch's split.
            features: B tensors (T_i, D).
            utterance_ids: names of the utterances. None in evaluation with s3prl's batches: the
                first half of the batch is compared with the second half.
            labels: in training, indices of the speakers; without ids, 1 or 0 for B / 2 trials.
            records: gets `loss`; `embeddings`, pairs of id and (width,); `scores`, `labels`.
        """
        padded, lengths = pad_features(features)
        hidden = self.connector(padded)
        if split == self.train_split:
            speakers = torch.as_tensor(labels)
            loss: Tensor = self.objective(self.model(hidden, lengths), speakers)
            records["loss"].append(loss.detach())
            return loss
        # s3prl's batches have no names; pool them like s3prl.
        embeddings = self._embeddings(hidden, lengths, pool_padding=utterance_ids is None)
        if utterance_ids is not None:
            records["embeddings"] += zip(utterance_ids, embeddings, strict=True)
        else:
            first, second = embeddings.chunk(2)
            records["scores"] += (first * second).sum(dim=-1).tolist()
            records["labels"] += [int(label) for label in labels]
        return torch.tensor(0.0)

    def predict(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The speaker embedding of each utterance, with norm 1: scores are dot products."""
        padded, lengths = pad_features(features)
        embeddings = self._embeddings(self.connector(padded), lengths, pool_padding=False)
        return [{"embedding": embedding.tolist()} for embedding in embeddings]

    def join_chunks(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The mean embedding over time, with norm 1; chunks of digital silence do not count."""
        spoken = [chunk for chunk in chunks if not chunk.is_silent] or chunks
        vectors = torch.tensor([chunk.output["embedding"] for chunk in spoken])
        seconds = torch.tensor([chunk.own_seconds for chunk in spoken])
        return {"embedding": F.normalize(seconds @ vectors, dim=-1).tolist()}

    def _embeddings(self, hidden: Tensor, lengths: Tensor, pool_padding: bool) -> Tensor:
        vectors = self.model.embed(hidden, lengths, pool_padding_frame=pool_padding)
        return F.normalize(vectors.detach(), dim=-1).cpu()

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        if split == self.train_split:
            return {}
        if records.get("scores"):
            return {"eer": equal_error_rate(records["labels"], records["scores"]).rate}
        names = [name for name, _ in records["embeddings"]]
        embeddings = torch.stack([embedding for _, embedding in records["embeddings"]])
        rows = {name: row for row, name in enumerate(names)}
        trials = self._trials(split)
        scored = [t for t in trials if t.first_id in rows and t.second_id in rows]
        if len(scored) < len(trials):
            logger.warning(
                "sv %s: %d of %d trials are left out, because an utterance could not be read",
                *(split, len(trials) - len(scored), len(trials)),
            )
        first = embeddings[[rows[trial.first_id] for trial in scored]]
        second = embeddings[[rows[trial.second_id] for trial in scored]]
        scores = (first * second).sum(dim=-1)
        return {"eer": equal_error_rate([trial.label for trial in scored], scores).rate}
