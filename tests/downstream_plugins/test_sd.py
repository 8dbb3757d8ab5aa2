"""Diarization: labels, the decision made on dev, NIST's error rate."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream_plugins.sd import (
    DEFAULT_MEDIAN_FILTER,
    DEFAULT_THRESHOLD,
    SpeakerDiarization,
)
from downstream_plugins.sd.corpus import Libri2Mix
from tests.mistakes import user_error


def build(folder: Path, labels: dict[str, Any] | None = None, **datarc: Any) -> SpeakerDiarization:
    settings = {
        "datarc": {"frame_shift": 160, **datarc},
        "modelrc": {"rnn_layers": 1, "hidden_size": 4},
    }
    torch.manual_seed(0)
    return SpeakerDiarization(
        8, 320, settings, folder, labels=labels or {"speakers_per_recording": 2}
    )


def recording(name: str = "a", level: float = 0.65) -> tuple[str, np.ndarray, np.ndarray]:
    """One speaker for 200 frames, then the other; probabilities of `level` where they speak."""
    reference = np.zeros((400, 2), dtype=bool)
    reference[:200, 0] = True
    reference[200:, 1] = True
    probabilities = np.where(reference, level, 0.1).astype(np.float32)
    return name, reference, probabilities


RIGHT = [(np.ones((2, 1)), np.ones((2, 1)))]
HALF_RIGHT = [(np.ones((2, 1)), np.array([[1], [0]]))]
"""Decisions of a batch of two frames, expected and found."""


def test_the_threshold_that_dev_prefers_is_used_on_test(tmp_path: Path) -> None:
    expert = build(tmp_path)
    # Speech reaches 0.35, silence 0.1: of the thresholds from 0.3 to 0.7 only 0.3 parts them.
    dev = {"decisions": HALF_RIGHT, "recordings": [recording(level=0.35)]}
    assert expert.measure("dev", dev) == {"acc": 0.5, "der": 0.0}
    assert expert.decision == {"threshold": 0.3, "median_filter": 1}
    assert {type(value) for value in expert.decision.values()} == {float, int}
    assert expert.measure("test", dev)["der"] == 0.0
    other = build(tmp_path)
    other.decision = {"threshold": 0.5, "median_filter": 1}
    assert other.measure("test", dev)["der"] == 1.0


def test_the_median_filter_that_dev_prefers_removes_flickers(tmp_path: Path) -> None:
    expert = build(tmp_path)
    name, reference, probabilities = recording()
    probabilities[50::40, 0] = 0.9
    probabilities[20:180:40, 0] = 0.1
    values = expert.measure(
        "dev", {"decisions": RIGHT, "recordings": [(name, reference, probabilities)]}
    )
    assert expert.decision["median_filter"] == 11
    assert values["der"] < 0.02


def test_without_dev_the_decision_is_the_default_and_this_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expert = build(tmp_path)
    with caplog.at_level(logging.WARNING):
        values = expert.measure("test", {"decisions": RIGHT, "recordings": [recording()]})
    (record,) = caplog.records
    default = (DEFAULT_THRESHOLD, DEFAULT_MEDIAN_FILTER)
    assert (record.name, record.args) == ("downstream_plugins.sd", ("test", *default))
    assert expert.decision == {}
    # The median of 11 frames sees silence beyond both ends, and so loses nothing but edges.
    assert values["der"] <= 0.05


def test_recordings_are_scored_under_the_best_order_of_their_speakers(tmp_path: Path) -> None:
    expert = build(tmp_path)
    name, reference, probabilities = recording()
    swapped = (name, reference, probabilities[:, ::-1].copy())
    values = expert.measure("dev", {"decisions": RIGHT, "recordings": [recording("a"), swapped]})
    assert values["der"] == 0.0


def test_whole_recordings_keep_probabilities_and_chunks_have_an_error_rate(tmp_path: Path) -> None:
    expert = build(tmp_path)
    features = [torch.randn(49, 8), torch.randn(30, 8)]
    labels = [torch.ones(100, 2), torch.zeros(61, 2)]
    lengths = [100, 61]
    whole: dict[str, list[Any]] = defaultdict(list)
    expert("dev", features, labels, lengths, ["a", "b"], records=whole)
    assert [name for name, *_ in whole["recordings"]] == ["a", "b"]
    for (_, reference, probabilities), length in zip(whole["recordings"], lengths, strict=True):
        assert reference.shape == probabilities.shape == (length, 2)
        assert ((probabilities > 0) & (probabilities < 1)).all()
    (decisions,) = whole["decisions"]
    assert [side.shape for side in decisions] == [(161, 2), (161, 2)]

    alone: dict[str, list[Any]] = defaultdict(list)
    expert("dev", features[1:], labels[1:], lengths[1:], ["b"], records=alone)
    np.testing.assert_allclose(alone["recordings"][0][2], whole["recordings"][1][2], rtol=1e-5)

    chunks: dict[str, list[Any]] = defaultdict(list)
    expert("train", features, labels, lengths, ["a", "b"], records=chunks)
    assert len(chunks["decisions"]) == 1 and "recordings" not in chunks
    assert expert.measure("train", chunks).keys() == {"acc", "der"}


def test_a_silent_batch_has_an_accuracy_but_no_error_rate(tmp_path: Path) -> None:
    expert = build(tmp_path)
    records: dict[str, list[Any]] = defaultdict(list)
    expert("train", [torch.randn(50, 8)], [torch.zeros(100, 2)], [100], None, records=records)
    assert expert.measure("train", records).keys() == {"acc"}


def test_dev_and_test_are_whole_recordings_and_training_is_chunks(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    settings = {
        "datarc": {
            "data_dir": tiny_corpus / "Libri2Mix",
            "frame_shift": 160,
            "chunk_size": 150,
            "train_batch_size": 4,
        },
        "modelrc": {"rnn_layers": 1, "hidden_size": 4},
    }
    expert = SpeakerDiarization(8, 320, settings, tmp_path, cache_dir=manifest_cache)
    longest = 0
    for wavs, labels, lengths, _ in expert.get_dataloader("train"):
        for wav, label, length in zip(wavs, labels, lengths, strict=True):
            assert len(label) == length <= 150
            assert abs(len(wav) - 160 * length) <= 1
            longest = max(longest, length)
    assert longest == 150
    names = []
    for wavs, labels, lengths, recordings in expert.get_dataloader("test"):
        names += recordings
        assert lengths[0] > 150
        assert 0 <= len(wavs[0]) - 160 * lengths[0] < 160 + 1
        assert labels[0].sum(dim=0).min() > 0
    folder = tiny_corpus / "Libri2Mix" / "test"
    assert names == [line.split()[0] for line in (folder / "wav.scp").read_text().splitlines()]


def test_another_number_of_speakers_than_the_head_has_is_refused(tmp_path: Path) -> None:
    with user_error("checkpoint-mismatch", where=r"datarc\.num_speakers", fix="2"):
        build(tmp_path, num_speakers=3)
    with user_error("invalid-value", where="label space"):
        build(tmp_path, labels={"speakers_per_recording": 0})


def speech(*segments: tuple[int, float, float], start: int = 0) -> dict[str, Any]:
    """The labels of a chunk of 10 s."""
    facts = {"recording": "a", "segments": [list(s) for s in segments]}
    return {**facts, "start_frame": start, "frames": 1000}


@pytest.mark.parametrize(
    ("silent", "spoken"),
    [
        ([], (0, 1.0, 2.0)),
        ([(1, 30.0, 40.0)], (1, 9.5, 40.0)),  # after the end of the audio
        ([(0, 3.0, 3.0)], (0, 3.0, 3.01)),  # of no duration
        ([(0, 0.0, 0.004)], (0, 0.0, 0.006)),  # less than half a frame
    ],
)
def test_a_split_in_which_nobody_speaks_is_an_error_before_training(
    silent: list, spoken: tuple, cut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Libri2Mix, "duration_findings", lambda corpus, split, audio: [])
    expert = build(tmp_path, data_dir=tmp_path)
    nothing = cut("a", **speech(*silent))
    assert expert.findings("dev", [nothing, cut("b", **speech(spoken))]) == []
    (finding,) = expert.findings("dev", [nothing, nothing])
    assert (finding.code, finding.certain) == ("undefined-metric", True)
    assert "'dev'" in str(finding.where)


def test_speech_of_another_chunk_is_not_counted(
    cut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Libri2Mix, "duration_findings", lambda corpus, split, audio: [])
    expert = build(tmp_path, data_dir=tmp_path)
    assert expert.findings("train", [cut("a", **speech((0, 12.0, 13.0), start=1000))]) == []
    assert expert.findings("train", [cut("a", **speech((0, 12.0, 13.0)))])[0].certain


def test_a_split_without_speech_has_an_accuracy_and_no_error_rate(tmp_path: Path) -> None:
    expert = build(tmp_path)
    silence = np.zeros((10, 2), dtype=bool)
    records = {"decisions": HALF_RIGHT, "recordings": [("a", silence, np.full((10, 2), 0.4))]}
    assert expert.measure("train", records) == {"acc": 0.5}
    for split in ("dev", "test"):
        assert expert.measure(split, records) == pytest.approx(
            {"acc": 0.5, "der": np.nan}, nan_ok=True
        )
    assert expert.decision == {}


@pytest.mark.parametrize(("split", "by"), [("train", 0.5), ("dev", 1.0), ("test", 0.5)])
def test_durations_that_are_shorter_than_the_audio_are_an_error(
    split: str, by: float, tiny_corpus: Path, tmp_path: Path
) -> None:
    root = tmp_path / "Libri2Mix"
    shutil.copytree(tiny_corpus / "Libri2Mix", root)
    settings = {
        "datarc": {"data_dir": root, "frame_shift": 160},
        "modelrc": {"rnn_layers": 1, "hidden_size": 4},
    }
    expert = SpeakerDiarization(8, 320, settings, tmp_path, cache_dir=tmp_path / "cache")
    assert expert.findings(split, expert.cuts(split)) == []
    path = root / split / "reco2dur"
    first, *others = path.read_text().splitlines()
    name, seconds = first.split()
    path.write_text("\n".join([f"{name} {float(seconds) - by:.3f}", *others]))
    (finding,) = expert.findings(split, expert.cuts(split))
    assert finding.certain and str(path) in str(finding.where) and name in str(finding.where)
