"""Slot filling scores of transcripts such as `PLAY B-artist MILES DAVIS E-artist`.

The value of a slot is the text between `B-<slot>` and the next `E-<slot>`. Definitions follow
SUPERB (Lai et al., "Semi-supervised spoken language understanding via self-supervised
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

# SUPERB's search for the closest hypothesis starts from this rate: a candidate that is not better
# is replaced with the empty string.
WORST_RATE = 100.0

Slots = dict[str, list[str]]


def find_slots(transcript: str, *, strip_nested: bool = True) -> list[tuple[str, str]]:
    """Name and value of each slot of a transcript, in order.

    Args:
        transcript: such as `PLAY B-artist MILES DAVIS E-artist`.
        strip_nested: remove the symbols of slots that are nested in a value.
    """
    found = [(m["slot"], m["value"]) for m in SLOT.finditer(re.sub(" +", " ", transcript))]
    if not strip_nested:
        return found
    return [(slot, END.sub("", BEGIN.sub("", value))) for slot, value in found]


def without_slots(transcript: str) -> str:
    """The words of a transcript, without slot symbols."""
    return " ".join(END.sub(" ", BEGIN.sub(" ", f"{transcript} ")).split())


def _by_name(slots: list[tuple[str, str]]) -> Slots:
    values: Slots = {}
    for name, value in slots:
        values.setdefault(name, []).append(value)
    return values


def _slot_pairs(
    references: Sequence[str], hypotheses: Sequence[str]
) -> Iterator[tuple[Slots, Slots]]:
    """Slots of each reference, paired with those of its hypothesis."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        raise UserError("Slot scores are undefined without utterances.", code="undefined-metric")
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        # Slots are nested only in hypotheses.
        yield _by_name(find_slots(reference, strip_nested=False)), _by_name(find_slots(hypothesis))


def slot_type_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean over utterances of the F1 of slot types, regardless of values.

    An utterance without slots scores 1 if its hypothesis has none either, otherwise 0.

    Raises:
        ValueError: different numbers of references and hypotheses.
        UserError: no utterances.

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
    """Reference values, and the closest value of the same slot in each hypothesis."""
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
            "The error rate of slot values is undefined: the references contain no slots.",
            fix="Check the slot labels of the split that is scored.",
            code="undefined-metric",
        )
    return values, closest


def slot_value_cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate of slot values, a fraction.

    Each reference value is compared with the closest value of the same slot in the hypothesis, or
    with the empty string if the slot is missing. Inserted values are not penalised.

    Raises:
        ValueError: different numbers of references and hypotheses.
        UserError: the references contain no slots.

    Source: SUPERB's slot filling.
    """
    return character_error_rate(*_closest_values(references, hypotheses, character_error_rate))


def slot_value_wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word error rate of slot values, a fraction; see `slot_value_cer`."""
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
                else:  # a substitution counts twice
                    counts["missed"] += 1
                    counts["wrong"] += 1
        if count_inserted:
            counts["wrong"] += sum(len(found[slot]) for slot in found.keys() - expected.keys())
    total = 2 * counts["right"] + counts["missed"] + counts["wrong"]
    if total == 0:
        raise UserError(
            "The F1 of slots is undefined: references and hypotheses contain no slots.",
            fix="Check the slot labels of the split that is scored.",
            code="undefined-metric",
        )
    return 2 * counts["right"] / total


def slot_edit_f1_full(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """F1 of exactly matching slot values over all utterances, a fraction.

    A substituted value counts as missed and as wrong, a value of a missing slot as missed, the
    values of an inserted slot as wrong.

    Raises:
        ValueError: different numbers of references and hypotheses.
        UserError: references and hypotheses contain no slots.

    Source: SUPERB's slot filling, which reports percent.
    """
    return _slot_edit_f1(references, hypotheses, count_inserted=True)


def slot_edit_f1_part(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """`slot_edit_f1_full` without inserted slots.

    Raises:
        ValueError: different numbers of references and hypotheses.
        UserError: the references contain no slots.
    """
    return _slot_edit_f1(references, hypotheses, count_inserted=False)
