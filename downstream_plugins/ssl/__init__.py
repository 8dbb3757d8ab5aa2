"""Self-supervised pre-training: HuBERT's masked prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from downstream_plugins.ssl.corpus import UnitLabelledAudio
from downstream_plugins.ssl.masked_prediction import class_logits, summed_loss, without_duplicates
from s3prl_mtl import Mask, MaskedUtterance, Metric, TaskExpert, Upstream
from s3prl_mtl.data import SAMPLE_RATE, Finding, Manifest
from s3prl_mtl.errors import UserError
from s3prl_mtl.nn import SpanMasking, to_device

SPECIAL_SYMBOLS = 4
"""Entries of fairseq's dictionaries before the classes, each with an embedding."""

TOLERANCE_SECONDS = 0.1
"""Between the length of a file and its list, as between labels and audio."""

DEFAULTS: dict[str, Any] = {
    "mask_prob": 0.65,
    "mask_length": 10,
    "mask_selection": "static",
    "mask_other": 0.0,
    "no_mask_overlap": False,
    "mask_min_space": 1,
    "mask_channel_prob": 0.0,
    "mask_channel_length": 10,
    "mask_channel_selection": "static",
    "mask_channel_other": 0.0,
    "no_mask_channel_overlap": False,
    "mask_channel_min_space": 1,
    "final_dim": 0,
    "untie_final_proj": False,
    "target_glu": False,
    "logit_temp": 0.1,
    "skip_masked": False,
    "skip_nomask": False,
    "pred_masked_weight": 1.0,
    "pred_nomask_weight": 0.0,
    "loss_weights": [],
}
"""fairseq's, for settings that neither the task nor the checkpoint has."""


class MaskedPrediction(TaskExpert):
    """`ssl`: predict the classes of masked frames from the last layer (HuBERT, Hsu et al., 2021).

    Loss and settings are those of fairseq's `hubert` model and criterion. The loss is fairseq's sum
    divided by the number of predicted frames of the batch, so that it has the scale of the other
    tasks of a step. The head has fairseq's names: `final_proj`, `label_embs_concat`, `target_glu`.
    It starts from the encoder's own where their shapes fit.

    Args:
        arguments: of :class:`TaskExpert`.
        upstream: the encoder, for its settings of pre-training and the start of the head; None:
            fairseq's defaults and random weights.
        keywords: of :class:`TaskExpert`.
    """

    name = "ssl"
    corpus_type = UnitLabelledAudio
    has_timed_labels = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("acc_masked", "higher", "accuracy, masked", headline=True),
        Metric("acc_unmasked", "higher", "accuracy, unmasked"),
        Metric("bits", "lower", "loss in bits", range=(0.0, math.inf), percent=False),
    )
    selected_by = "bits"

    def __init__(self, *arguments: Any, upstream: Upstream | None = None, **keywords: Any) -> None:
        self._pretraining = {} if upstream is None else dict(upstream.pretraining_settings)
        # Without a penalty in fairseq, where null is a value.
        if self._pretraining.get("loss_weights", ()) is None:
            self._pretraining["loss_weights"] = []
        super().__init__(*arguments, **keywords)
        if upstream is not None:
            self._start_from(upstream)

    # ----------------------------------------------------------------------------- head

    def build_head(self) -> None:
        dictionaries = self.labels.get("dictionaries")
        if not isinstance(dictionaries, Mapping) or not dictionaries:
            raise UserError(
                "The label space of ssl has no 'dictionaries'.",
                where="the checkpoint's labels, or the corpus they were read from",
                code="label-unknown",
            )
        self.label_sets = list(dictionaries)
        self.numbers = [
            {symbol: SPECIAL_SYMBOLS + number for number, symbol in enumerate(symbols)}
            for symbols in dictionaries.values()
        ]
        self.sizes = [SPECIAL_SYMBOLS + len(symbols) for symbols in dictionaries.values()]
        self.labels_per_frame = self.labels["label_rate"] * self.upstream_rate / SAMPLE_RATE
        self.frame_masks = self._masking("mask", min_spans=2)
        self.channel_masks = self._masking("mask_channel")
        self.logit_temp = self._value("modelrc", "logit_temp")
        self.skip_masked = self._value("modelrc", "skip_masked")
        self.skip_nomask = self._value("modelrc", "skip_nomask")
        self.masked_weight = self._value("lossrc", "pred_masked_weight")
        self.nomask_weight = self._value("lossrc", "pred_nomask_weight")
        weights = self._value("lossrc", "loss_weights")
        if len(weights) > 1 or not all(isinstance(weight, int | float) for weight in weights):
            raise self._invalid("lossrc", "loss_weights", "Give one number, as in [10.0], or [].")
        self.penalty_weight = weights[0] if weights else 0.0
        weights_of = {"skip_masked": self.masked_weight, "skip_nomask": self.nomask_weight}
        for name, weight in weights_of.items():
            if getattr(self, name) and weight:
                raise self._invalid("modelrc", name, "Set the weight of these frames to 0.")
        width = self._value("modelrc", "final_dim") or self.upstream_dim
        untied = self._value("modelrc", "untie_final_proj")
        self.final_proj = nn.Linear(self.upstream_dim, width * len(self.sizes) if untied else width)
        self.label_embs_concat = nn.Parameter(torch.empty(sum(self.sizes), width).uniform_())
        self.target_glu: nn.Module = nn.Identity()
        if self._value("modelrc", "target_glu"):
            self.target_glu = nn.Sequential(nn.Linear(width, 2 * width), nn.GLU())

    def _masking(self, prefix: str, min_spans: int = 0) -> SpanMasking:
        names = {
            "prob": f"{prefix}_prob",
            "length": f"{prefix}_length",
            "selection": f"{prefix}_selection",
            "other": f"{prefix}_other",
            "no_overlap": f"no_{prefix}_overlap",
            "min_space": f"{prefix}_min_space",
        }
        values = {key: self._value("modelrc", name) for key, name in names.items()}
        try:
            return SpanMasking(**values, min_spans=min_spans)
        except UserError as error:
            name = names[error.where or ""]
            raise UserError(
                error.what,
                where=self.key_path("modelrc", name),
                fix=error.fix,
                code=error.code,
            ) from error

    def _value(self, block: str, name: str) -> Any:
        """A setting: the task's own, else the checkpoint's, else fairseq's default."""
        own = (self.settings.get(block) or {}).get(name)
        value = next(v for v in (own, self._pretraining.get(name), DEFAULTS[name]) if v is not None)
        wanted = type(DEFAULTS[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise self._invalid(block, name, f"{value!r} is not of type {wanted.__name__}.")
        return value

    def _invalid(self, block: str, name: str, fix: str) -> UserError:
        return UserError(
            f"ssl: the setting {name} cannot be used.",
            where=self.key_path(block, name),
            fix=fix,
            code="invalid-value",
        )

    @torch.no_grad()
    def _start_from(self, upstream: Upstream) -> None:
        """Start the head from the parameters of the encoder's own pre-training, if all fit.

        Class embeddings are taken by the names of the classes, where the encoder has these.
        """
        parameters = dict(self.named_parameters())
        own = {name: value for name, value in upstream.state_dict().items() if name in parameters}
        different = [
            f"{name} of {list(own[name].shape) if name in own else 'none'}, not "
            f"{list(parameter.shape)}"
            for name, parameter in parameters.items()
            if name not in own or own[name].shape != parameter.shape
        ]
        theirs = upstream.pretraining_classes
        if not different and theirs is not None:
            different = self._different_classes(theirs)
        if not different:
            for name, parameter in parameters.items():
                parameter.copy_(own[name])
            if theirs is not None:
                embeddings = own["label_embs_concat"]
                self.label_embs_concat.copy_(embeddings[self._rows_of_classes(theirs)])
            self.starts_from = "the encoder's pre-training"
        elif own:
            self.starts_from = f"random weights: the encoder has {different[0]}"

    def _different_classes(self, theirs: Sequence[Sequence[str]]) -> list[str]:
        """Differences of the label sets of the encoder's pre-training from those of the head."""
        ours = self.labels["dictionaries"]
        if len(theirs) != len(ours):
            return [f"{len(theirs)} label sets, not {len(ours)}"]
        return [
            f"{len(classes)} classes in place of the {len(ours[name])} of {name}"
            if len(classes) != len(ours[name])
            else f"other classes than those of {name}"
            for name, classes in zip(ours, theirs, strict=True)
            if set(classes) != set(ours[name])
        ]

    def _rows_of_classes(self, theirs: Sequence[Sequence[str]]) -> list[int]:
        """The row of the encoder's embeddings of each row of the head's."""
        rows: list[int] = []
        for ours, classes in zip(self.labels["dictionaries"].values(), theirs, strict=True):
            first = len(rows)
            rows += range(first, first + SPECIAL_SYMBOLS)
            place = {name: number for number, name in enumerate(classes, first + SPECIAL_SYMBOLS)}
            rows += (place[name] for name in ours)
        return rows

    # ----------------------------------------------------------------------------- data

    def cuts(self, split: str) -> Manifest:
        """The utterances of a split.

        Raises:
            UserError: the rate of the labels differs from that of the head's training labels.
        """
        cuts = super().cuts(split)
        # Of a split, all labels of a label set have one rate.
        rates: list[float] = next((labels["rates"] for labels in cuts.labels()), [])
        for name, rate in zip(self.label_sets, rates, strict=False):
            if not math.isclose(rate, self.labels["label_rate"]):
                assert isinstance(self.corpus, UnitLabelledAudio)
                raise UserError(
                    "ssl: the rate of the labels differs from that of the head's training labels: "
                    f"{rate:g} per second, not {self.labels['label_rate']:g}.",
                    where=str(self.corpus.labels(split, name)),
                    fix="Label all splits with the same centres (s3prl-mtl cluster --centers).",
                    code="corpus-inconsistent",
                )
        return cuts

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Files of another length than the list says: their labels are of other audio."""
        findings = super().findings(split, cuts)
        listed = np.array([labels["samples"] for labels in cuts.labels()]) / SAMPLE_RATE
        different = np.abs(np.asarray(cuts.durations) - listed) > TOLERANCE_SECONDS
        if different.any():
            first = int(np.argmax(different))
            findings.append(
                Finding(
                    f"{int(different.sum())} of {len(cuts)} files differ in length from "
                    f"{split}.tsv; their labels belong to other audio.",
                    where=f"{cuts[first].id}: {cuts.durations[first]:.2f} s, listed with "
                    f"{listed[first]:.2f} s",
                    fix="Make the lists and labels again from this audio (s3prl-mtl cluster).",
                    code="corpus-inconsistent",
                    certain=True,
                )
            )
        return findings

    def read(self, cut: Any, split: str, generator: torch.Generator) -> tuple[Any, ...]:
        """The waveform; the classes of its frames, int64 (label sets, frames); the seed of its
        mask."""
        waveform = self.waveform(cut, split, generator)
        targets = self._targets(cut, split)
        longest = self.datarc.get("max_sample_size")
        if longest is not None and split == self.train_split and len(waveform) > longest:
            # Whole frames, so that labels stay aligned.
            last = (len(waveform) - longest) // self.upstream_rate
            first = int(torch.randint(last + 1, (), generator=generator))
            waveform = waveform[first * self.upstream_rate :][:longest]
            targets = targets[:, first:]
        return waveform, targets, int(torch.randint(2**32, (), generator=generator))

    def _targets(self, cut: Any, split: str) -> Tensor:
        assert isinstance(self.corpus, UnitLabelledAudio)
        rows = []
        for name, numbers, offset in zip(
            self.label_sets, self.numbers, cut.custom["labels"]["offsets"], strict=True
        ):
            classes = self.corpus.read(split, name, offset)
            # The label at the beginning of each frame, as fairseq takes it.
            # A rate such as 16000 / 96 has rounding errors.
            frames = range(math.ceil(len(classes) / self.labels_per_frame - 1e-6))
            places = [math.floor(frame * self.labels_per_frame + 1e-6) for frame in frames]
            chosen = [classes[place] for place in places]
            try:
                rows.append([numbers[name] for name in chosen])
            except KeyError as error:
                raise UserError(
                    f"ssl: the head has no output for the class {error.args[0]!r} of {cut.id}.",
                    where=str(self.corpus.labels(split, name)),
                    fix=f"Give the labels that belong to {self.corpus.dictionary(name)}.",
                    code="label-unknown",
                ) from None
        count = min(map(len, rows))
        return torch.tensor([row[:count] for row in rows])

    # ------------------------------------------------------------------------- training

    def masks(
        self,
        split: str,
        frames: Sequence[int],
        targets: Sequence[Tensor],
        seeds: Sequence[int],
    ) -> list[Mask]:
        """The mask of each utterance, determined by its seed.

        Args:
            split: of the batch.
            frames: of each utterance.
            targets: their classes (label sets, frames_i); frames without a class are not masked.
            seeds: of each utterance.
        """
        masks = []
        for count, classes, seed in zip(frames, targets, seeds, strict=True):
            generator = np.random.RandomState(seed)
            labelled = min(count, classes.shape[1])
            masked = torch.zeros(count, dtype=torch.bool)
            if self.frame_masks.prob:
                masked[:labelled] = self.frame_masks.draw(labelled, generator)
            channels = None
            if self.channel_masks.prob:
                channels = self.channel_masks.draw(self.upstream_dim, generator)
            masks.append(Mask(masked, channels))
        return masks

    def forward(
        self,
        split: str,
        utterances: Sequence[MaskedUtterance],
        targets: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        records: dict[str, list[Any]],
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            split: the batch's split.
            utterances: B masked utterances.
            targets: B tensors (label sets, frames_i).
            seeds: of their masks; not used.
            records: gets `loss`; `bits`, pairs of the loss times its frames, and the frames;
                `masked` and `unmasked`, pairs of correct and of all frames.
        """
        states = torch.cat([utterance.states for utterance in utterances])
        # Indices are made on the CPU, so that no one waits for the GPU to count.
        masked = torch.cat([utterance.mask.frames for utterance in utterances])
        classes = torch.full((len(self.sizes), len(masked)), -1)
        lengths = [len(utterance.states) for utterance in utterances]
        for part, target in zip(classes.split(lengths, dim=1), targets, strict=True):
            frames = min(part.shape[1], target.shape[1])
            part[:, :frames] = target[:, :frames]
        labelled = classes[0] >= 0
        loss = states.new_zeros(())
        predicted = 0
        for kind, rows, weight, is_skipped in (
            ("masked", labelled & masked, self.masked_weight, self.skip_masked),
            ("unmasked", labelled & ~masked, self.nomask_weight, self.skip_nomask),
        ):
            if is_skipped:
                continue
            places = rows.nonzero()[:, 0]
            chosen = states.index_select(0, to_device(places, states.device))
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(weight)):
                total, correct = self._loss_of(chosen, classes[:, places])
            records[kind].append((correct, len(places) * len(self.sizes)))
            if weight:
                loss = loss + weight * total
                predicted += len(places)
        loss = loss / max(1, predicted)
        if self.penalty_weight:
            penalties = torch.stack([utterance.penalty for utterance in utterances])
            shares = to_device(torch.tensor(lengths) / sum(lengths), penalties.device)
            loss = loss + self.penalty_weight * (penalties * shares).sum()
        records["loss"].append(loss.detach())
        records["bits"].append((loss.detach() * predicted, predicted))
        return loss

    def _loss_of(self, states: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and number of correct predictions of frames, over the label sets.

        Args:
            states: (frames, D).
            classes: (label sets, frames), on the CPU.
        """
        projected = self.final_proj(states)
        width = self.label_embs_concat.shape[1]
        parts = projected.split(width, dim=1)
        loss, correct = states.new_zeros(()), states.new_zeros((), dtype=torch.long)
        for number, embeddings in enumerate(self.label_embs_concat.split(self.sizes)):
            embeddings = self.target_glu(embeddings)
            targets = to_device(classes[number], states.device)
            part = parts[number] if len(parts) > 1 else parts[0]
            logits = class_logits(part, embeddings, self.logit_temp)
            more, right = summed_loss(without_duplicates(logits, targets, embeddings), targets)
            loss, correct = loss + more, correct + right
        return loss, correct

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        """Accuracies over frames (of all label sets together), and the loss in bits."""
        values = {}
        for kind in ("masked", "unmasked"):
            correct, count = _sums(records.get(kind, ()))
            if count:
                values[f"acc_{kind}"] = correct / count
        loss, frames = _sums(records["bits"])
        if frames:
            values["bits"] = loss / frames / math.log(2)
        return values


def _sums(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    return float(sum(map(float, first))), float(sum(map(float, second)))
