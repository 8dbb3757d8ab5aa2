"""Scores of slot filling, read off transcripts such as `PLAY B-artist MILES DAVIS E-artist`.

A slot's value is what stands between `B-<slot>` and the next `E-<slot>`. The definitions are
those of SUPERB (Lai et al., "Semi-supervised spoken language understanding via self-supervised
speech and language model pretraining", ICASSP 2021, for the edit F1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics.edit_distance import character_error_rate, word_error_rate

SLOT = re.compile(r"B-(?P<slot>\S+) (?P<value>.+?) E-(?P=slot)")
BEGIN = re.compile(r"B-\S+ ")
END = re.compile(r" E-\S+")

# SUPERB's search for the closest hypothesis starts from this rate: what is no better counts as
# empty.
WORST_RATE = 100.0

Slots = dict[str, list[str]]


def find_slots(transcript: str) -> list[tuple[str, str]]:
    """The slots of a hypothesis such as `PLAY B-artist MILES DAVIS E-artist`: name and value.

    A slot that is opened within another is part of its value, without its symbols.
    """
    found = SLOT.finditer(re.sub(" +", " ", transcript))
    return [(m["slot"], END.sub("", BEGIN.sub("", m["value"]))) for m in found]


def without_slots(transcript: str) -> str:
    """The words of a transcript, without the symbols that open and close slots."""
    return " ".join(END.sub(" ", BEGIN.sub(" ", f"{transcript} ")).split())


def _slots(transcript: str, *, strip_nested: bool) -> Slots:
    """The values of each slot, in order; a slot that occurs twice has two."""
    values: Slots = {}
    for match in SLOT.finditer(re.sub(" +", " ", transcript)):
        value = match["value"]
        if strip_nested:
            value = END.sub("", BEGIN.sub("", value))
        values.setdefault(match["slot"], []).append(value)
    return values


def _slot_pairs(
    references: Sequence[str], hypotheses: Sequence[str]
) -> Iterator[tuple[Slots, Slots]]:
    """The slots of each reference beside those of its hypothesis."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        raise UserError("Slots cannot be scored without an utterance.")
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        # Only a hypothesis can open a slot within another.
        yield _slots(reference, strip_nested=False), _slots(hypothesis, strip_nested=True)


def slot_type_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean over utterances of the F1 of the slot types found, whatever their values.

    An utterance without slots counts 1 if its hypothesis has none either, else 0.

    Raises:
        ValueError: the two differ in number.
        UserError: there is no utterance.

    Source: SUPERB's slot filling.
    """
    scores = []
    for expected, found in _slot_pairs(references, hypotheses):
        types = len(expected) + len(found)
        scores.append(2 * len(expected.keys() & found.keys()) / types if types else 1.0)
    return sum(scores) / len(scores)


def _closest_values(
    references: Sequence[str],
    hypotheses: Sequence[str],
    rate: Callable[[Sequence[str], Sequence[str]], float],
) -> tuple[list[str], list[str]]:
    """Each reference value, and the closest value that the hypothesis has for its slot."""
    values, closest = [], []
    for expected, found in _slot_pairs(references, hypotheses):
        for slot, slot_values in expected.items():
            for value in slot_values:
                best, best_rate = "", WORST_RATE
                for candidate in found.get(slot, []):
                    candidate_rate = rate([value], [candidate])
                    if candidate_rate < best_rate:
                        best, best_rate = candidate, candidate_rate
                values.append(value)
                closest.append(best)
    if not values:
        raise UserError(
            "The references hold no slot, so the error rate of slot values is undefined.",
            fix="check the slot labels of the split that is scored.",
        )
    return values, closest


def slot_value_cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate of slot values, a fraction.

    Each reference value is held against the closest value of the same slot in the hypothesis, an
    empty one if the slot is missing. Values that only the hypothesis has cost nothing.

    Raises:
        ValueError: the two differ in number.
        UserError: the references hold no slot.

    Source: SUPERB's slot filling.
    """
    return character_error_rate(*_closest_values(references, hypotheses, character_error_rate))


def slot_value_wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word error rate of slot values, a fraction; otherwise as `slot_value_cer`."""
    return word_error_rate(*_closest_values(references, hypotheses, word_error_rate))


def _slot_edit_f1(
    references: Sequence[str], hypotheses: Sequence[str], *, count_inserted: bool
) -> float:
    counts: Counter[str] = Counter()
    for expected, found in _slot_pairs(references, hypotheses):
        for slot, values in expected.items():
            for value in values:
                if slot not in found:
                    counts["missed"] += 1
                elif value in found[slot]:
                    counts["right"] += 1
                else:  # a substitution: the right value is missed, a wrong one given
                    counts["missed"] += 1
                    counts["wrong"] += 1
        if count_inserted:
            counts["wrong"] += sum(len(found[slot]) for slot in found.keys() - expected.keys())
    total = 2 * counts["right"] + counts["missed"] + counts["wrong"]
    if total == 0:
        raise UserError(
            "Neither references nor hypotheses hold a slot, so their F1 is undefined.",
            fix="check the slot labels of the split that is scored.",
        )
    return 2 * counts["right"] / total


def slot_edit_f1_full(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """F1 of slot values that are exactly right, a fraction, over all utterances together.

    A value of the reference whose slot the hypothesis has, but never with this value, counts as
    missed and as wrong; one whose slot is missing as missed; values of slots that only the
    hypothesis has as wrong.

    Raises:
        ValueError: the two differ in number.
        UserError: there is no slot on either side.

    Source: SUPERB's slot filling, which gives it in percent.
    """
    return _slot_edit_f1(references, hypotheses, count_inserted=True)


def slot_edit_f1_part(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """`slot_edit_f1_full` without the slots that only the hypothesis has.

    Raises:
        ValueError: the two differ in number.
        UserError: the references hold no slot.
    """
    return _slot_edit_f1(references, hypotheses, count_inserted=False)
