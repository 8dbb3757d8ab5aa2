"""Slot filling on Audio SNIPS: the words and slots of a spoken command."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from downstream_plugins.sf.corpus import IOB_FILE, AudioSnips, slot_target
from downstream_plugins.sf.table import SlotTable
from s3prl_mtl import Metric, TranscriptionExpert
from s3prl_mtl.data import Finding, Manifest
from s3prl_mtl.metrics import (
    character_error_rate,
    find_slots,
    slot_edit_f1_full,
    slot_edit_f1_part,
    slot_type_f1,
    slot_value_cer,
    slot_value_wer,
    without_slots,
    word_error_rate,
)

logger = logging.getLogger(__name__)

BEGIN, END = "B-", "E-"
EMPTY_SLOT = (BEGIN, END)
"""Symbols of a slot with an empty name, the last ones of s3prl's vocabulary where it has them."""
SPACE = " "

Score = Callable[[Sequence[str], Sequence[str]], float]


class SlotFilling(TranscriptionExpert):
    """SUPERB's `sf`: letters by CTC, with a symbol at the start and at the end of each slot."""

    name = "sf"
    corpus_type = AudioSnips
    table_type = SlotTable
    dev_split = "valid"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("slot_type_f1", "higher", "slot type F1"),
        Metric("slot_value_cer", "lower", "slot value CER", headline=True, range=(0.0, math.inf)),
        Metric("slot_value_wer", "lower", "slot value WER", range=(0.0, math.inf)),
        Metric("slot_edit_f1_full", "higher", "slot edit F1, full"),
        Metric("slot_edit_f1_part", "higher", "slot edit F1, part"),
        Metric("wer", "lower", "WER", range=(0.0, math.inf)),
        Metric("cer", "lower", "CER", range=(0.0, math.inf)),
    )
    decoding = "merged"  # default for settings of s3prl's branch, which lack the key

    def make_vocabulary(self) -> list[str]:
        slots = self.label_list("slots")
        self.slot_symbols = frozenset(side + slot for slot in slots for side in (BEGIN, END))
        brackets = [side + slot for slot in slots for side in (BEGIN, END)]
        return [*self.label_list("vocabulary"), *brackets]

    def symbols_of(self, labels: Mapping[str, Any]) -> Iterator[str]:
        """Letters, and spaces between words except next to a slot symbol inside the slot."""
        last = None
        for word in slot_target(labels["iob_words"], labels["iob_slots"]).split():
            closes = word in self.slot_symbols and word.startswith(END)
            opened = last in self.slot_symbols and str(last).startswith(BEGIN)
            if last is not None and not closes and not opened:
                yield SPACE
            if word in self.slot_symbols:
                yield word
            else:
                yield from word
            last = word

    def from_s3prl(self, head: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remove the last two outputs of a head that was trained with an empty slot.

        s3prl reads a slot with an empty name where `slots.txt` ends in a newline.
        """
        extra = [name for name in ("model.linear.weight", "model.linear.bias") if name in head]
        if not extra or len(head[extra[0]]) != len(self.vocabulary) + len(EMPTY_SLOT):
            return head
        logger.warning(
            "sf: the head has %d outputs, 2 more than the vocabulary. s3prl has two more symbols "
            "where slots.txt ends in a newline: the last two outputs are left out.",
            len(head[extra[0]]),
        )
        return {
            name: value[: len(self.vocabulary)] if name in extra else value
            for name, value in head.items()
        }

    def findings(self, split: str, cuts: Manifest) -> list[Finding]:
        """Findings of the base class, and an evaluated split without slots."""
        findings = super().findings(split, cuts)
        symbols = (symbol for labels in cuts.labels() for symbol in self.symbols_of(labels))
        if not any(symbol in self.slot_symbols for symbol in symbols):
            findings.append(
                Finding(
                    f"No word of split {split!r} is in a slot: the error rates of slot values are "
                    "undefined.",
                    where=f"split {split!r} of sf",
                    fix=f"Check the slots in {IOB_FILE}, or in the column `slots` of own data.",
                    code="undefined-metric",
                    certain=split != self.train_split,
                )
            )
        return findings

    def write(self, symbols: Sequence[str]) -> str:
        return "".join(self._written(symbol) for symbol in symbols)

    def _written(self, symbol: str) -> str:
        if symbol not in self.slot_symbols:
            return symbol
        return symbol + SPACE if symbol.startswith(BEGIN) else SPACE + symbol

    def answer(self, symbols: Sequence[str]) -> dict[str, Any]:
        transcript = self.write(symbols)
        slots = [{"slot": slot, "value": value} for slot, value in find_slots(transcript)]
        return {"text": without_slots(transcript), "slots": slots}

    def measure(self, split: str, records: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        scores: dict[str, Score] = {
            "slot_type_f1": slot_type_f1,
            "slot_value_cer": slot_value_cer,
            "slot_value_wer": slot_value_wer,
            "slot_edit_f1_full": slot_edit_f1_full,
            "slot_edit_f1_part": slot_edit_f1_part,
            "wer": lambda r, h: word_error_rate(r, h, separator=SPACE),
            "cer": character_error_rate,
        }
        references, hypotheses = records["reference"], records["hypothesis"]
        return self.defined(
            split,
            {name: partial(score, references, hypotheses) for name, score in scores.items()},
        )
