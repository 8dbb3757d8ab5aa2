"""Query by example: find the documents that contain a spoken query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qbe_task.corpus import QUERIES, STATISTICS, Quesst14
from qbe_task.term_weighted_value import false_alarm_weight, maximum_term_weighted_value
from qbe_task.warping import frame_distances, rescale, subsequence_cost
from s3prl_mtl import Metric, TaskExpert
from s3prl_mtl.data import apply_gain, load_waveform
from s3prl_mtl.errors import UserError

GAIN_DECIBELS = -3.0


class QueryByExample(TaskExpert):
    """SUPERB's tenth task: dynamic time warping on the hidden states of one layer.

    Nothing is trained. On dev every layer is evaluated, and the best one becomes the expert's
    decision; test is searched with that layer. A split is read in three parts: its queries, some
    documents for the statistics of the features, then all documents. Every process reads the first
    two; documents are divided among processes and compared with all queries as they are read.
    """

    name = "qbe"
    corpus_type = Quesst14
    corpus: Quesst14
    # The maximum is at least 0: a threshold may reject every document.
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mtwv", "higher", "MTWV", range=(0.0, 1.0)),)
    worst_score = -1.0
    wants_hidden_states = True
    is_trained = False

    def build_head(self) -> None:
        self.choice_setting("search", "distance", choices=("cosine_exp", "cosine"))
        self.search: dict[str, Any] = dict(self.setting("search"))
        self.unsearched_score: float | None = self.setting("scoring").get("unsearched_score")
        costs = ("target_prior", "miss_cost", "false_alarm_cost")
        self.false_alarm_weight = false_alarm_weight(
            *(float(self.setting("scoring", key)) for key in costs)
        )
        self._begin("")

    # -------------------------------------------------------------------------- reading

    def waveform(self, cut: Any, split: str, generator: torch.Generator) -> Tensor:
        return apply_gain(load_waveform(cut), GAIN_DECIBELS)

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        return self.waveform(cut, split, generator), cut.id, cut.custom["labels"]["kind"]

    def prepare(self, split: str) -> None:
        if split:  # not `train_split: null`
            super().prepare(split)

    def get_dataloader(
        self,
        split: str,
        epoch: int = 0,
        skip_batches: int = 0,
        shares: Sequence[int] = (0,),
        num_shares: int = 1,
    ) -> Iterable[tuple[Any, ...]]:
        """All queries and statistics documents, then shares of the documents."""
        parts = []
        for name, mine, count in (
            (split + QUERIES, (0,), 1),
            (split + STATISTICS, (0,), 1),
            (split, shares, num_shares),
        ):
            whole = super().get_dataloader(name, epoch, 0, mine, count)
            batches = len(whole)  # type: ignore[arg-type]
            skipped = min(skip_batches, batches)
            skip_batches -= skipped
            parts.append(super().get_dataloader(name, epoch, skipped, mine, count))
        return _ChainedLoader(parts)

    # ------------------------------------------------------------------------ searching

    def forward(
        self,
        split: str,
        hidden_states: Sequence[Tensor],
        utterance_ids: Sequence[str],
        kinds: Sequence[str],
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """Search the documents of a batch for all queries read so far; the loss is always 0.

        Args:
            split: the batch's split.
            hidden_states: B tensors (L, T_i, D).
            utterance_ids: names of the utterances.
            kinds: query, statistics or document, for each utterance.
            records: gets `query` and `document`, the names; `scores`, for each document
                (queries, layers) in the order of the queries; `layer`, the layer numbers.
        """
        first = utterance_ids[0]
        if kinds[0] == "query" and (split != self._split or first in self._queries):
            self._begin(split)
        layers = self._layers(split, len(hidden_states[0]))
        documents = {}
        for states, name, kind in zip(hidden_states, utterance_ids, kinds, strict=True):
            chosen = states[layers]
            if kind == "query":
                self._queries[name] = chosen
                records["query"].append(name)
            if kind == "document":
                documents[name] = chosen
            else:
                self._count(chosen)
        if documents:
            scores = self._scores(list(documents.values()))
            records["document"] += documents
            records["scores"] += list(scores)
            records["layer"] += layers
        return torch.tensor(0.0)

    def _begin(self, split: str) -> None:
        """Discard the queries of the previous evaluation."""
        self._split = split
        self._queries: dict[str, Tensor] = {}
        self._ready: list[Tensor] = []
        self._sums: list[Tensor | int] = [0, 0, 0]

    def _layers(self, split: str, count: int) -> list[int]:
        """The layers to search with: the configured or chosen one, otherwise all."""
        layer = self.search["layer"]
        if layer is None and split != self.dev_split:
            layer = self.decision.get("layer")
        if layer is None:
            return list(range(count))
        if not 0 <= layer < count:
            raise UserError(
                f"qbe: the encoder has no hidden state {layer}: it has 0 to {count - 1}.",
                where=self.key_path("search", "layer"),
                code="invalid-value",
            )
        return [int(layer)]

    def _count(self, states: Tensor) -> None:
        """Add frames (L, T, D) to the statistics of the features."""
        wide = states.double()
        self._sums[0] += states.shape[1]
        self._sums[1] = self._sums[1] + wide.sum(dim=1, keepdim=True)
        self._sums[2] = self._sums[2] + wide.square().sum(dim=1, keepdim=True)

    def _unit(self, states: Tensor) -> Tensor:
        """Normalise frames (L, T, D) by the statistics, and to norm 1."""
        if self.search["normalise_features"]:
            frames, total, squares = self._sums
            mean = total / frames
            deviation = (squares / frames - mean.square()).clamp(min=0.0).sqrt().clamp(min=1e-9)
            states = ((states - mean) / deviation).float()
        return F.normalize(states, dim=-1)

    def _scores(self, documents: Sequence[Tensor]) -> Tensor:
        """The score of each query in each document, (documents, queries, layers)."""
        if not self._ready:
            self._ready = [self._unit(query) for query in self._queries.values()]
        frames = torch.tensor([document.shape[1] for document in documents])
        # (M, B, L, D) -> (L, B, M, D)
        padded = pad_sequence([self._unit(d).transpose(0, 1) for d in documents])
        padded = padded.permute(2, 1, 0, 3)
        valid = (torch.arange(padded.shape[2]) < frames[:, None]).to(padded.device)
        scores = []
        for query in self._ready:
            if query.shape[1] < self.search["shortest_query_frames"]:
                scores.append(padded.new_zeros(padded.shape[:2]))
                continue
            distances = frame_distances(query, padded, self.search["distance"] == "cosine_exp")
            if self.search["normalise_distances"]:
                distances = rescale(distances, valid)
            scores.append(-subsequence_cost(distances, valid))
        return torch.stack(scores).permute(2, 0, 1).cpu()

    # -------------------------------------------------------------------------- scoring

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        """MTWV: on dev of every layer and the best one, on other splits of the chosen one."""
        layers = list(dict.fromkeys(records["layer"]))
        order = sorted(range(len(records["document"])), key=lambda i: records["document"][i])
        documents = [records["document"][i] for i in order]
        queries = list(dict.fromkeys(records["query"]))
        scores = torch.stack([records["scores"][i] for i in order]).permute(2, 1, 0).double()
        # SUPERB's normalisation over documents, equivalent to a threshold per query.
        spread = scores.std(dim=-1, correction=0, keepdim=True).clamp(min=1e-9)
        scores = (scores - scores.mean(dim=-1, keepdim=True)) / spread
        matches = self.corpus.matches(split)
        unsearched = self.unsearched_score
        if unsearched is not None:
            # MediaEval's program scores the queries and documents of all languages.
            more_queries = sorted({query for query, _ in matches} - set(queries))
            more_documents = sorted(set(self.corpus.all_documents()) - set(documents))
            queries, documents = queries + more_queries, documents + more_documents
            widths = (0, len(more_documents), 0, len(more_queries))
            scores = F.pad(scores, widths, value=float(unsearched))
        targets = torch.tensor([[(q, d) in matches for d in documents] for q in queries])
        if not targets.any():
            raise UserError(
                f"qbe: no query of {split} occurs in any document.",
                where=str(self.corpus.truth_folder(split)),
                fix="Check that the lists and the ground truth belong to the same corpus.",
                code="undefined-metric",
            )
        values = {
            layer: maximum_term_weighted_value(score, targets, self.false_alarm_weight)
            for layer, score in zip(layers, scores, strict=True)
        }
        best = max(values, key=lambda layer: values[layer])
        if split == self.dev_split:
            self.decision = {"layer": best}
        elif len(layers) > 1:
            raise UserError(
                f"qbe: the layer for {split} must be chosen on {self.dev_split} first.",
                where="-t",
                fix=f"Evaluate both: -t qbe:{self.dev_split},qbe:{split}; or set "
                f"{self.key_path('search', 'layer')}.",
                code="missing-option",
            )
        each = {f"mtwv_layer_{layer}": value for layer, value in values.items()}
        return {"mtwv": values[best]} | (each if len(layers) > 1 else {})


class _ChainedLoader:
    """Iterate over several loaders in sequence."""

    def __init__(self, loaders: Sequence[Iterable[tuple[Any, ...]]]) -> None:
        self.loaders = loaders
        self.num_workers = max(getattr(loader, "num_workers", 0) for loader in loaders)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return chain.from_iterable(self.loaders)
