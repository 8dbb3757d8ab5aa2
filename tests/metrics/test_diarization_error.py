"""Diarization errors: two implementations against brute force over speaker mappings."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import medfilt

from s3prl_mtl.metrics import (
    DiarizationErrors,
    best_decision,
    decide_speech,
    diarization_error_rate,
    diarization_errors,
    frame_accuracy,
    frame_diarization_errors,
)
from tests.mistakes import user_error

Activity = np.ndarray


def turns(drawn: np.random.Generator, frames: int, speakers: int) -> Activity:
    """Speakers who speak and fall silent at random, each on their own."""
    changes = drawn.random((frames, speakers)) < 0.05
    return (changes.cumsum(axis=0) + drawn.integers(0, 2, speakers)) % 2


def fewest_errors(reference: Activity, hypothesis: Activity) -> tuple[int, int, int, int]:
    """Miss, false alarm, confusion and speech under the mapping with most frames in common.

    Goes through the mappings, the frames and the speakers one by one.
    """
    speakers = max(reference.shape[1], hypothesis.shape[1])
    best: tuple[int, tuple[int, int, int, int]] | None = None
    for order in itertools.permutations(range(speakers)):
        common, miss, false_alarm, confusion, speech = 0, 0, 0, 0, 0
        for expected, found in zip(reference.tolist(), hypothesis.tolist(), strict=True):
            said_by = {s for s, speaks in enumerate(expected) if speaks}
            given_to = {order[s] for s, speaks in enumerate(found) if speaks}
            right = len(said_by & given_to)
            common += right
            speech += len(said_by)
            miss += max(len(said_by) - len(given_to), 0)
            false_alarm += max(len(given_to) - len(said_by), 0)
            confusion += min(len(said_by), len(given_to)) - right
        if best is None or common > best[0]:
            best = common, (miss, false_alarm, confusion, speech)
    assert best is not None
    return best[1]


RECORDINGS: list[tuple[int, int, int]] = [
    (speakers, found, seed) for speakers in (1, 2, 3) for found in (0, 1, 2, 4) for seed in (0, 1)
]


@pytest.mark.parametrize(("speakers", "found", "seed"), RECORDINGS)
def test_errors_are_the_fewest_over_all_mappings(speakers: int, found: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    reference, hypothesis = turns(drawn, 150, speakers), turns(drawn, 150, found)
    errors = diarization_errors(reference, hypothesis)
    assert (
        errors.miss,
        errors.false_alarm,
        errors.confusion,
        errors.speech,
    ) == fewest_errors(reference, hypothesis)


def test_pyannote_and_the_count_of_frames_agree_over_recordings() -> None:
    drawn = np.random.default_rng(0)
    recordings = [
        (turns(drawn, int(frames), 2), turns(drawn, int(frames), speakers))
        for frames, speakers in zip(drawn.integers(50, 400, 12), [2, 1, 3] * 4, strict=True)
    ]
    counted = sum((diarization_errors(*pair) for pair in recordings), DiarizationErrors())
    rate = diarization_error_rate(recordings)
    assert rate == pytest.approx(counted.error_rate, rel=1e-9)
    singly = [fewest_errors(*pair) for pair in recordings]
    expected = sum(sum(e[:3]) for e in singly) / sum(e[3] for e in singly)
    assert rate == pytest.approx(expected, rel=1e-9)


def test_errors_of_a_recording_by_hand() -> None:
    reference = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 0]])
    hypothesis = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 1], [0, 0]])
    # Columns exchanged: confusion in frame 1, a miss in frame 2, two false alarms in frame 4.
    assert diarization_errors(reference, hypothesis) == DiarizationErrors(1, 2, 1, 5)
    assert diarization_error_rate([(reference, hypothesis)]) == pytest.approx(4 / 5)


def test_an_empty_hypothesis_misses_all_speech() -> None:
    reference = np.array([[1, 0], [1, 1], [0, 1]])
    assert diarization_error_rate([(reference, np.zeros_like(reference))]) == 1.0
    assert diarization_errors(reference, np.zeros_like(reference)).error_rate == 1.0


def test_speakers_are_mapped_within_each_recording() -> None:
    first, second = np.array([[1, 0], [0, 1]]), np.array([[0, 1], [1, 1]])
    assert diarization_error_rate([(first, first), (first, first[:, ::-1])]) == 0.0
    assert diarization_error_rate([(second, second[:, ::-1])]) == 0.0


def test_errors_in_a_fixed_order_do_not_exchange_speakers() -> None:
    reference = np.array([[1, 0], [1, 0], [0, 0]])
    assert frame_diarization_errors(reference, reference[:, ::-1]) == DiarizationErrors(0, 0, 2, 2)
    assert frame_accuracy(reference, reference[:, ::-1]) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    "rate",
    [
        lambda reference, hypothesis: diarization_error_rate([(reference, hypothesis)]),
        lambda reference, hypothesis: diarization_errors(reference, hypothesis).error_rate,
    ],
)
def test_a_rate_without_speech_and_unequal_lengths_are_errors(
    rate: Callable[[Activity, Activity], float],
) -> None:
    silence = np.zeros((3, 2))
    with user_error("undefined-metric"):
        rate(silence, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\b3\b.*\b4\b"):
        rate(silence, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        rate(np.zeros(3), np.zeros(3))


def test_speech_is_what_lies_above_the_threshold() -> None:
    probabilities = np.array([[0.2, 0.5], [0.51, 0.9]])
    assert decide_speech(probabilities, 0.5).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("size", [1, 3, 11])
def test_smoothing_is_a_majority_over_frames_with_silence_at_both_ends(size: int) -> None:
    probabilities = np.random.default_rng(size).random((60, 2))
    decided = decide_speech(probabilities, 0.5, size)
    raw = np.pad(probabilities > 0.5, ((size // 2, size // 2), (0, 0)))
    for frame, speaker in np.ndindex(60, 2):
        assert decided[frame, speaker] == (raw[frame : frame + size, speaker].sum() > size // 2)
    if size > 1:
        expected = medfilt((probabilities > 0.5).astype(float), (size, 1))
        assert (decided == expected).all()


@pytest.mark.parametrize("size", [0, 2, -1])
def test_a_median_over_an_even_number_of_frames_is_an_error(size: int) -> None:
    with pytest.raises(ValueError, match=rf" {size}$"):
        decide_speech(np.zeros((5, 2)), 0.5, size)


def test_the_best_decision_has_the_lowest_rate_over_all_recordings() -> None:
    drawn = np.random.default_rng(0)
    recordings = []
    for frames in (200, 300):
        reference = turns(drawn, frames, 2)
        # Speech at 0.4 and more, with flicker: a low threshold and a median serve best.
        noise = drawn.random(reference.shape)
        recordings.append((reference, np.where(noise < 0.05, 1 - reference, reference * 0.35)))
    thresholds, filters = (0.3, 0.4, 0.5, 0.6, 0.7), (1, 11)
    rates = {
        (t, m): diarization_error_rate([(r, decide_speech(p, t, m)) for r, p in recordings])
        for t in thresholds
        for m in filters
    }
    chosen = best_decision(recordings)
    assert (chosen.threshold, chosen.median_filter) == min(rates, key=lambda key: rates[key])
    assert chosen.threshold == 0.3
    assert chosen.error_rate == pytest.approx(min(rates.values()), rel=1e-9)


def test_of_equal_decisions_the_first_is_taken() -> None:
    reference = np.ones((30, 1))
    chosen = best_decision([(reference, reference)], thresholds=(0.6, 0.4), median_filters=(1, 3))
    assert (chosen.threshold, chosen.median_filter) == (0.6, 1)
    with pytest.raises(ValueError):
        best_decision([(reference, reference)], thresholds=())
