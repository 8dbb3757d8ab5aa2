"""Slot metrics, against the originals' values and against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from s3prl_mtl.metrics import (
    character_error_rate,
    slot_edit_f1_full,
    slot_edit_f1_part,
    slot_type_f1,
    slot_value_cer,
    slot_value_wer,
    word_error_rate,
)
from tests.mistakes import user_error

Golden = dict[str, Any]
Metric = Callable[[list[str], list[str]], float]

METRICS: dict[str, Metric] = {
    "slot_type_f1": slot_type_f1,
    "slot_value_cer": slot_value_cer,
    "slot_value_wer": slot_value_wer,
    "slot_edit_f1_full": slot_edit_f1_full,
    "slot_edit_f1_part": slot_edit_f1_part,
    "wer": lambda references, hypotheses: word_error_rate(references, hypotheses, separator=" "),
    "cer": character_error_rate,
}


def fraction(name: str, original: float) -> float:
    """The original gives the edit F1 in percent, all else as fractions."""
    return original / 100 if name.startswith("slot_edit") else original


@pytest.mark.usefixtures("either_edit_distance")
@pytest.mark.parametrize("name", sorted(METRICS))
def test_slot_metrics_equal_those_of_the_original(
    name: str, golden: Callable[[str], Golden]
) -> None:
    slot = golden("metrics")["slot"]
    value = METRICS[name](slot["groundtruth"], slot["hypothesis"])
    assert value == pytest.approx(fraction(name, slot["values"][name]), rel=1e-9)


@pytest.mark.usefixtures("either_edit_distance")
@pytest.mark.parametrize("name", sorted(METRICS))
def test_slot_metrics_of_the_original_head_are_reproduced(
    name: str, golden: Callable[[str], Golden]
) -> None:
    expected = golden("sf")
    records = expected["records"]
    value = METRICS[name](records["groundtruth"], records["hypothesis"])
    original = expected["logged"][f"ctc-snips/valid-{name}"]
    assert value == pytest.approx(fraction(name, original), rel=1e-9)


# Each row: reference, hypothesis, then by hand: type F1, (edits, length) of characters and of
# words of the values, and (right, missed, wrong) for the edit F1 with the slots that only the
# hypothesis has.
CASES = [
    pytest.param(
        "PLAY B-artist AB E-artist AND B-artist CD EF E-artist",
        "PLAY B-artist CD E-artist AND B-artist AB E-artist",
        1.0,
        (0 + 3, 2 + 5),  # AB finds AB; "CD EF" finds CD
        (0 + 1, 1 + 2),
        (1, 1, 1),
        id="a slot twice, its values in another order",
    ),
    pytest.param(
        "B-city ROME E-city B-time NOW E-time",
        "B-city ROM E-city",
        2 / 3,
        (1 + 3, 4 + 3),  # NOW meets an empty hypothesis
        (1 + 1, 1 + 1),
        (0, 2, 1),
        id="a slot missing",
    ),
    pytest.param(
        "B-city ROME E-city",
        "B-city ROME E-city B-time A E-time B-time B E-time",
        2 / 3,
        (0, 4),
        (0, 1),
        (1, 0, 2),
        id="a slot too many, twice",
    ),
    pytest.param(
        "B-city ROME E-city",
        "B-city ROME NOW",
        0.0,
        (4, 4),
        (1, 1),
        (0, 1, 0),
        id="a slot that never ends",
    ),
    pytest.param(
        "B-city NEW YORK E-city",
        "B-city  NEW B-time YORK E-city",
        1.0,
        (0, 8),
        (0, 2),
        (1, 0, 0),
        id="spaces, and the opening of another slot inside",
    ),
    pytest.param(
        "B-city ROME E-city",
        "B-city A E-time ROME E-city",
        1.0,
        (2, 4),
        (1, 1),
        (0, 1, 1),
        id="the end of another slot inside",
    ),
    pytest.param(
        "B-city ABC E-city",
        "B-city XBC E-city B-city ABX E-city",
        1.0,
        (1, 3),
        (1, 1),
        (0, 1, 1),
        id="two candidates as close as each other",
    ),
]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "type_f1", "characters", "words", "counts"), CASES
)
def test_slot_metrics_equal_counts_by_hand(
    reference: str,
    hypothesis: str,
    type_f1: float,
    characters: tuple[int, int],
    words: tuple[int, int],
    counts: tuple[int, int, int],
) -> None:
    pair = [reference], [hypothesis]
    assert slot_type_f1(*pair) == pytest.approx(type_f1)
    assert slot_value_cer(*pair) == pytest.approx(characters[0] / characters[1])
    assert slot_value_wer(*pair) == pytest.approx(words[0] / words[1])
    right, missed, wrong = counts
    assert slot_edit_f1_full(*pair) == pytest.approx(2 * right / (2 * right + missed + wrong))


def test_type_f1_is_the_mean_over_utterances_and_value_rates_are_of_totals() -> None:
    references = ["B-a LONG VALUE HERE E-a", "B-a X E-a", "NO SLOT", "NO SLOT"]
    hypotheses = ["B-a LONG VALUE HERE E-a", "", "NOTHING", "B-a X E-a"]
    assert slot_type_f1(references, hypotheses) == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert slot_value_wer(references, hypotheses) == pytest.approx(1 / 4)
    assert slot_value_cer(references, hypotheses) == pytest.approx(1 / 16)
    assert slot_edit_f1_part(references, hypotheses) == pytest.approx(2 / (2 + 1))
    assert slot_edit_f1_full(references, hypotheses) == pytest.approx(2 / (2 + 1 + 1))


@pytest.mark.parametrize("name", ["slot_value_cer", "slot_value_wer", "slot_edit_f1_part"])
def test_metrics_of_slots_need_a_slot_in_the_references(name: str) -> None:
    with user_error("undefined-metric"):
        METRICS[name](["NO SLOT"], ["B-a X E-a"])


@pytest.mark.parametrize("name", [name for name in METRICS if name.startswith("slot")])
def test_no_utterance_and_unequal_numbers_are_errors(name: str) -> None:
    with user_error("undefined-metric"):
        METRICS[name]([], [])
    with pytest.raises(ValueError, match=r"\b1\b.*\b0\b"):
        METRICS[name](["B-a X E-a"], [])
