"""Speaker diarization on Libri2Mix."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from downstream_plugins.sd.corpus import Libri2Mix, frame_labels
from downstream_plugins.sd.table import RecordingTable
from s3prl_mtl import Chunk, Metric, TaskExpert
from s3prl_mtl.data import SAMPLE_RATE, Finding, Manifest
from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics import (
    best_decision,
    decide_speech,
    diarization_error_rate,
    frame_accuracy,
    frame_diarization_errors,
)
from s3prl_mtl.nn import (
    DiarizationHead,
    match_length,
    pad_features,
    permutation_invariant_bce,
    to_device,
)

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
DEFAULT_MEDIAN_FILTER = 11
"""In label frames. Both defaults are replaced by the values tuned on dev."""


class SpeakerDiarization(TaskExpert):
    """SUPERB's `sd`: an LSTM predicts the speech activity of each speaker in each frame.

    Training uses chunks. Dev and test are whole recordings, scored by NIST's rules with the
    threshold and median filter with the lowest error rate on dev (`decision`).
    """

    name = "sd"
    has_timed_labels = True
    corpus_type = Libri2Mix
    table_type = RecordingTable
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("der", "lower", "DER", range=(0.0, math.inf)),
        Metric("acc", "higher", "frame accuracy"),
    )
    selected_by = "acc"

    @classmethod
    def conditions(cls, settings: Mapping[str, Any]) -> str:
        return "no collar, overlapped speech scored; threshold and median filter chosen on dev"

    def build_head(self) -> None:
        speakers = self.labels.get("speakers_per_recording")
        if isinstance(speakers, bool) or not isinstance(speakers, int) or speakers < 1:
            raise UserError(
                f"`speakers_per_recording` must be a positive integer, not {speakers!r}.",
                where="the label space of sd",
                code="invalid-value",
            )
        self.speakers = speakers
        if self.datarc.get("num_speakers", speakers) != speakers:
            raise UserError(
                f"The head of sd is for {speakers} speakers in a recording, the settings have "
                f"{self.datarc['num_speakers']}.",
                where=self.key_path("datarc", "num_speakers"),
                fix=f"Set it to {speakers}.",
                code="checkpoint-mismatch",
            )
        layers = self.setting("modelrc", "rnn_layers")
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise UserError(
                f"The number of layers must be a non-negative integer, not {layers!r}.",
                where=self.key_path("modelrc", "rnn_layers"),
                code="invalid-value",
            )
        hidden_size = self.size_setting("modelrc", "hidden_size")
        self.frame_shift = self.size_setting("datarc", "frame_shift")
        self.model = DiarizationHead(self.upstream_dim, speakers, layers, hidden_size)

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Recordings that are longer than their metadata states, and a split in whose audio nobody
        speaks."""
        audio = {cut.custom["labels"]["recording"]: cut.recording.duration for cut in cuts}
        findings = super().findings(split, cuts)
        if isinstance(self.corpus, Libri2Mix):
            findings += self.corpus.duration_findings(split, audio)
        if not any(self._frame_labels(cut).any() for cut in cuts):
            findings.append(
                Finding(
                    f"Split {split!r} contains no speech according to its segments: its error rate "
                    "is undefined.",
                    where=f"split {split!r} of sd",
                    fix="Check that `segments` and `wav.scp` name the same recordings.",
                    code="undefined-metric",
                    certain=True,
                )
            )
        return findings

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        """The waveform, the labels (frames, speakers), their number of frames, the recording."""
        labels = self._frame_labels(cut)
        recording = cut.custom["labels"]["recording"]
        return self.waveform(cut, split, generator), labels, len(labels), recording

    def _frame_labels(self, cut: Any) -> Tensor:
        """Activity of each speaker in each label frame, (frames, speakers)."""
        facts = cut.custom["labels"]
        return frame_labels(
            facts["segments"],
            facts["start_frame"],
            facts["frames"],
            self.frame_shift,
            SAMPLE_RATE,
            self.speakers,
        )

    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        labels: Sequence[Tensor],
        lengths: Sequence[int] | Tensor,
        recordings: Sequence[str] | None,
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            split: the batch's split.
            features: B tensors (T_i, D).
            labels: B tensors (frames_i, speakers), 1 where a speaker speaks, else 0.
            lengths: frames_i (B,).
            recordings: names of whole recordings; None for chunks, as in s3prl. Ignored in
                training, which uses chunks.
            records: gets `loss`; `decisions`, the activity of speakers in all frames of the batch,
                expected and found, each bool (sum of frames_i, speakers); for recordings also
                `recordings`, triples of name, labels, and probabilities (frames_i, speakers).
        """
        names = None if split == self.train_split else recordings
        lengths = torch.as_tensor(lengths)
        frames = lengths.tolist()
        references = pad_sequence([torch.as_tensor(label) for label in labels], batch_first=True)
        if names is None:
            # As in s3prl: features that are one frame shorter than the labels are extended with
            # padding, not with their last frame.
            features = list(pad_features(features)[0])
            matched = [match_length(feature, references.shape[1]) for feature in features]
        else:
            matched = [match_length(f, n) for f, n in zip(features, frames, strict=True)]
        logits = self.model(pad_features(matched)[0])
        references = to_device(references.to(torch.bool), logits.device)
        loss, orders = permutation_invariant_bce(logits, references, lengths)
        records["loss"].append(loss.detach())

        scores = logits.detach().float()
        expected = references.gather(2, orders.unsqueeze(1).expand(references.shape))
        decisions = tuple(
            torch.cat([row[:length] for row, length in zip(rows, frames, strict=True)])
            for rows in (expected, scores > 0)
        )
        records["decisions"].append(decisions)
        if names is not None:
            rows = zip(names, references, scores.sigmoid(), frames, strict=True)
            records["recordings"] += [(name, r[:n], p[:n]) for name, r, p, n in rows]
        return loss

    def predict(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The speech segments of each speaker, in seconds, sorted by start."""
        return [
            {"segments": self._segments(found)}
            for found in self.chunk_outputs(features, lengths_samples)
        ]

    def chunk_outputs(
        self, features: Sequence[Tensor], lengths_samples: Sequence[int]
    ) -> list[Tensor]:
        """The probability that a speaker speaks in a frame, (frames, speakers), for each chunk."""
        frames = [math.ceil(samples / self.frame_shift) for samples in lengths_samples]
        matched = [match_length(f, n) for f, n in zip(features, frames, strict=True)]
        probabilities = self.model(pad_features(matched)[0]).float().sigmoid().cpu()
        return [found[:length].clone() for found, length in zip(probabilities, frames, strict=True)]

    def align_chunk(self, previous: Chunk, chunk: Chunk) -> Tensor:
        """Order the speakers of a chunk as those of the previous one.

        The order with the least squared difference where both chunks overlap: the head numbers the
        speakers of each chunk anew. If fewer speak there, the order of the others is arbitrary.
        """
        from scipy.optimize import linear_sum_assignment  # slow to import

        rate = SAMPLE_RATE / self.frame_shift
        behind = previous.output[round((chunk.start - previous.start) * rate) :]
        both = min(len(behind), len(chunk.output))
        before, here = behind[:both], chunk.output[:both]
        cost = (before[:, :, None] - here[:, None, :]).square().sum(dim=0)
        return chunk.output[:, linear_sum_assignment(cost.numpy())[1]]

    def join_chunks(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The segments of the recording, decided from the frames of all own parts."""
        rate = SAMPLE_RATE / self.frame_shift
        found = torch.cat([chunk.own(chunk.output, rate) for chunk in chunks])
        return {"segments": self._segments(found, round(chunks[0].own_start * rate))}

    def _segments(self, probabilities: Tensor, first_frame: int = 0) -> list[dict[str, Any]]:
        decided = decide_speech(probabilities.numpy(), *self._chosen())
        return segments(decided, self.frame_shift / SAMPLE_RATE, first_frame)

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        decisions = records["decisions"]
        # Mean over all frames, independent of the batches.
        accuracies = [frame_accuracy(*batch) for batch in decisions]
        accuracy = float(
            np.average(accuracies, weights=[len(expected) for expected, _ in decisions])
        )
        scores: dict[str, Callable[[], float]] = {"acc": lambda: accuracy}
        if records.get("recordings"):
            scores["der"] = lambda: self._score(split, records["recordings"])
        else:
            errors = [frame_diarization_errors(*batch) for batch in decisions]
            # The rate of a silent batch is undefined.
            rates = [batch.error_rate for batch in errors if batch.speech]
            if rates:
                scores["der"] = lambda: _mean(rates)
        return self.defined(split, scores)

    def _score(self, split: str, recordings: Sequence[tuple[str, Tensor, Tensor]]) -> float:
        """The diarization error rate of recordings; on dev, tune the decision first."""
        if split == self.dev_split:
            best = best_decision([(reference, found) for _, reference, found in recordings])
            self.decision = {"threshold": best.threshold, "median_filter": best.median_filter}
        if not self.decision:
            logger.warning(
                "sd: no threshold was chosen on dev yet; scoring %s with %g, median filter %d",
                *(split, DEFAULT_THRESHOLD, DEFAULT_MEDIAN_FILTER),
            )
        threshold, median_filter = self._chosen()
        decided = (
            (reference, decide_speech(found, threshold, median_filter))
            for _, reference, found in recordings
        )
        return diarization_error_rate(decided, self.frame_shift / SAMPLE_RATE)

    def _chosen(self) -> tuple[float, int]:
        """Threshold and median filter: tuned on dev, or the defaults."""
        threshold = self.decision.get("threshold", DEFAULT_THRESHOLD)
        return threshold, int(self.decision.get("median_filter", DEFAULT_MEDIAN_FILTER))


def segments(
    decided: np.ndarray, frame_seconds: float, first_frame: int = 0
) -> list[dict[str, Any]]:
    """Convert frame decisions to speech segments.

    Args:
        decided: (frames, speakers), 1 where a speaker speaks.
        frame_seconds: duration of a frame.
        first_frame: number of the first frame in its recording.

    Returns:
        Segments with `speaker` (its column), `start` and `end` in seconds, sorted by start.
    """
    found = []
    for speaker, active in enumerate(np.asarray(decided).T):
        edges = np.diff(active.astype(np.int8), prepend=0, append=0)
        starts, ends = (first_frame + np.flatnonzero(edges == edge) for edge in (1, -1))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            times = {"start": start * frame_seconds, "end": end * frame_seconds}
            found.append({"speaker": speaker, **times})
    return sorted(found, key=lambda segment: (segment["start"], segment["speaker"]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
