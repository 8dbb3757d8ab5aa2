"""Base class of tasks that classify whole utterances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_mtl.data import Manifest, apply_gain, load_waveform, random_crop
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.metrics import accuracy
from s3prl_mtl.nn import head_from_settings, pad_features, to_device
from s3prl_mtl.tasks.base import TaskExpert
from s3prl_mtl.tasks.chunks import Chunk
from s3prl_mtl.tasks.metric import Metric


class ClassificationExpert(TaskExpert):
    """Classification of utterances by one label (who speaks?), or by several at once.

    The head is SUPERB's: `projector`, then the model that `modelrc` selects, with an output for
    every answer to every question. The loss is the sum of the cross-entropies of the questions; an
    utterance counts as correct if all its answers are. A task states its corpus::

        class SpokenLanguage(ClassificationExpert):
            name = "lid"
            corpus_type = MyCorpus      # labels `class`, label space `classes`

    Settings: `modelrc.projector_dim`, `modelrc.select`; in `datarc` the paths of the corpus, the
    batch sizes and, optionally, `max_timestep`: longer training utterances (in samples) are cropped
    at random to that length.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("acc", "higher", "accuracy"),)
    questions: ClassVar[Mapping[str, str]] = {"class": "classes"}
    """The label that answers each question, and the list of its answers in the label space."""
    gain_decibels: ClassVar[float] = 0.0
    """Gain applied to every waveform; negative values attenuate."""

    def build_head(self) -> None:
        self.answers = {
            label: {answer: number for number, answer in enumerate(self.label_list(space))}
            for label, space in self.questions.items()
        }
        self.answer_counts = [len(numbers) for numbers in self.answers.values()]
        self.choice_setting("modelrc", "select", choices=("UtteranceLevel",))
        width = self.size_setting("modelrc", "projector_dim")
        self.projector = nn.Linear(self.upstream_dim, width)
        self.model = head_from_settings(
            width,
            sum(self.answer_counts),
            self.setting("modelrc"),
            self.upstream_rate,
            where=self.key_path("modelrc"),
        )

    def cuts(self, split: str) -> Manifest:
        """The utterances of a split.

        Raises:
            UserError: the head has no output for the label of an utterance.
        """
        cuts = super().cuts(split)
        for labels in cuts.distinct_labels():
            try:
                self.target(labels)
            except UserError as error:
                utterances = self.corpus.utterances(split)
                first = next((one for one in utterances if dict(one.labels) == labels), None)
                if first is None:
                    raise
                raise UserError(
                    error.what,
                    where=f"{first.source or first.path}; {error.where}",
                    fix=error.fix,
                    code=error.code,
                ) from error
        return cuts

    def target(self, labels: Mapping[str, Any]) -> int | Tensor:
        """The index of the answer, or int64 (questions,) for several questions.

        Raises:
            UserError: the head has no output for an answer.
        """
        numbers = []
        for label, known in self.answers.items():
            if labels[label] not in known:
                raise UserError(
                    f"{self.name}: the head has no output for the {label} {labels[label]!r}: "
                    f"it is not among the {len(known)} that it was built for.",
                    where=f"the label space's {self.questions[label]!r}",
                    fix=nearest(str(labels[label]), list(known)),
                    code="label-unknown",
                )
            numbers.append(known[labels[label]])
        return numbers[0] if len(numbers) == 1 else torch.tensor(numbers)

    def condition(self, waveform: Tensor) -> Tensor:
        return apply_gain(waveform, self.gain_decibels) if self.gain_decibels else waveform

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        waveform = self.condition(load_waveform(cut))
        longest = self.datarc.get("max_timestep")
        if longest is not None and split == self.train_split:
            waveform = random_crop(waveform, longest, generator)
        return waveform

    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        targets: Sequence[int | Tensor],
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            split: the batch's split.
            features: B tensors (T_i, D).
            targets: B results of :meth:`target`.
            records: gets `loss`, and `reference` and `hypothesis`: indices of the answers.
        """
        scores = self._scores(features)
        rows = [torch.as_tensor(target).reshape(-1) for target in targets]
        references = torch.stack(rows)
        expected = to_device(references, scores[0].device)
        losses = [
            F.cross_entropy(score, reference)
            for score, reference in zip(scores, expected.T, strict=True)
        ]
        loss = torch.stack(losses).sum()
        hypotheses = torch.stack([score.argmax(dim=-1) for score in scores], dim=-1)
        records["loss"].append(loss.detach())
        records["reference"] += references.tolist()
        records["hypothesis"] += hypotheses
        return loss

    def predict(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The answer to every question, and the joint probability of the answers.

        Args:
            features: B tensors (T_i, D).
            lengths_samples: B lengths of the waveforms; not used.
        """
        return [self._answer(scores) for scores in self.chunk_outputs(features, lengths_samples)]

    def chunk_outputs(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[tuple[Tensor, ...]]:
        """The probabilities (answers,) of each question, for each chunk."""
        scores = [score.double().softmax(dim=-1).cpu() for score in self._scores(features)]
        return list(zip(*scores, strict=True))

    def join_chunks(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The answers by the mean probabilities over time, and in `chunks` those of each chunk."""
        seconds = torch.tensor([chunk.own_seconds for chunk in chunks], dtype=torch.float64)
        share = seconds / seconds.sum()
        means = [share @ torch.stack(of) for of in zip(*(c.output for c in chunks), strict=True)]
        single = [
            {"start": chunk.start, "end": chunk.end, **self._answer(chunk.output)}
            for chunk in chunks
        ]
        return {**self._answer(means), **({"chunks": single} if len(single) > 1 else {})}

    def _answer(self, probabilities: Sequence[Tensor]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        joint = 1.0
        for (label, known), of_answers in zip(self.answers.items(), probabilities, strict=True):
            highest, number = of_answers.max(dim=-1)
            answer[label] = list(known)[int(number)]
            joint *= float(highest)
        return {**answer, "probability": joint}

    def _scores(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, answers) for each question."""
        padded, lengths = pad_features(features)
        return self.model(self.projector(padded), lengths).split(self.answer_counts, dim=-1)

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        return {"acc": accuracy(records["reference"], records["hypothesis"])}
