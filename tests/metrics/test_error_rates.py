"""Error rates, accuracy and CTC decoding, against counts by hand and by brute force."""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from s3prl_mtl.metrics import (
    accuracy,
    character_error_rate,
    collapse_ctc,
    token_error_rate,
    word_error_rate,
)
from tests.mistakes import user_error

Golden = dict[str, Any]


def edits(reference: Sequence[object], hypothesis: Sequence[object]) -> int:
    """The recursive definition of the edit distance."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = reference[i - 1] == hypothesis[j - 1]
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same)
        )

    return distance(len(reference), len(hypothesis))


@pytest.mark.usefixtures("either_edit_distance")
def test_asr_rates_of_the_original_are_ours_with_references_and_hypotheses_swapped(
    golden: Callable[[str], Golden],
) -> None:
    # The branch hands its two sides over in the wrong order, so that it divides by the length of
    # the hypotheses, and takes the characters of the spaced-out transcript for units. s3prl has
    # since put both right; edits over reference length, as here, is what SUPERB reports.
    expected = golden("asr")
    records, logged = expected["records"], expected["logged"]
    references, hypotheses = (
        [ast.literal_eval(words) for words in records[key]]
        for key in ("target_words", "pred_words")
    )
    exchanged = token_error_rate(hypotheses, references)
    assert 100 * exchanged == pytest.approx(logged["asr/dev-clean-wer"])
    exchanged = character_error_rate(records["pred_tokens"], records["target_tokens"])
    assert 100 * exchanged == pytest.approx(logged["asr/dev-clean-uer"])
    # By hand: no word is right, and of 51 units only the first transcript's C.
    units = ([t.split() for t in records[key]] for key in ("target_tokens", "pred_tokens"))
    assert token_error_rate(references, hypotheses) == pytest.approx(11 / 11)
    assert token_error_rate(*units) == pytest.approx(50 / 51)


@pytest.mark.usefixtures("either_edit_distance")
def test_phone_error_rate_equals_that_of_the_original(golden: Callable[[str], Golden]) -> None:
    expected = golden("pr")
    records = expected["records"]
    rate = word_error_rate(records["groundtruth"], records["hypothesis"], separator=" ")
    assert rate == pytest.approx(expected["logged"]["ctc-libriphone/dev-wer"])


@pytest.mark.usefixtures("either_edit_distance")
def test_token_error_rate_equals_the_definition() -> None:
    drawn = random.Random(0)
    for _ in range(50):
        pairs = [
            [drawn.choices("ABC", k=drawn.randint(low, 6)) for low in (1, 0)] for _ in range(3)
        ]
        references, hypotheses = zip(*pairs, strict=True)
        expected = sum(edits(r, h) for r, h in pairs) / sum(len(r) for r in references)
        assert token_error_rate(references, hypotheses) == pytest.approx(expected)


@pytest.mark.usefixtures("either_edit_distance")
def test_rates_are_of_totals_not_means_of_rates() -> None:
    assert word_error_rate(["A B C D", "A"], ["A B C D", "B"]) == pytest.approx(1 / 5)


@pytest.mark.usefixtures("either_edit_distance")
def test_an_empty_hypothesis_loses_every_word_and_insertions_can_exceed_one() -> None:
    assert word_error_rate(["A B C"], [""]) == 1.0
    assert word_error_rate(["A"], ["B C D"]) == 3.0


@pytest.mark.usefixtures("either_edit_distance")
def test_words_are_split_at_white_space_or_a_given_separator() -> None:
    assert word_error_rate(["A B"], ["  A   B "]) == 0.0
    # One space parts "A", "" and "B": one word too many.
    assert word_error_rate(["A B"], ["A  B"], separator=" ") == 0.5


@pytest.mark.usefixtures("either_edit_distance")
def test_characters_count_spaces() -> None:
    assert character_error_rate(["AB C"], ["ABC"]) == 0.25


@pytest.mark.parametrize("rate", [token_error_rate, word_error_rate, character_error_rate])
def test_rates_of_nothing_and_of_unequal_numbers_are_errors(rate: Callable[..., float]) -> None:
    for references, hypotheses in ([["", ""], ["A", ""]], [[], []]):
        with user_error("undefined-metric"):
            rate(references, hypotheses)
    with pytest.raises(ValueError, match=r"\b1\b.*\b2\b"):
        rate(["A"], ["A", "B"])


def test_accuracy_counts_items_with_all_parts_correct() -> None:
    assert accuracy([1, 2, 3, 4], [1, 0, 3, 0]) == 0.5
    assert accuracy(torch.tensor([1, 2]), torch.tensor([1, 2])) == 1.0
    rows = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert accuracy(rows, [(1, 2, 3), (4, 5, 0)]) == 0.5
    assert accuracy(list(rows), rows) == 1.0
    with user_error("undefined-metric"):
        accuracy([], [])
    with pytest.raises(ValueError, match=r"\b1\b.*\b2\b"):
        accuracy([1], [1, 2])


def test_collapsing_inverts_every_alignment_of_a_transcript() -> None:
    transcript = [3, 3, 1]
    # Between equal tokens there must be a blank; elsewhere there may be.
    for counts in itertools.product((1, 2), repeat=3):
        for blanks in itertools.product((0, 2), (1, 2), (0, 1), (0, 3)):
            frames = [0] * blanks[0]
            for token, count, blank in zip(transcript, counts, blanks[1:], strict=True):
                frames += [token] * count + [0] * blank
            assert collapse_ctc(frames) == transcript
            assert collapse_ctc(torch.tensor(frames)) == transcript


def test_collapsing_drops_the_blank_that_is_named() -> None:
    assert collapse_ctc([0, 0, 7, 7, 0, 2], blank=7) == [0, 0, 2]
    assert collapse_ctc([]) == []
