"""Symbols of asr, pr and sf, and their decoding."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from downstream_plugins.asr import SpeechRecognition
from downstream_plugins.pr import PhonemeRecognition
from downstream_plugins.sf import SlotFilling
from downstream_plugins.sf.corpus import parse_iob
from s3prl_mtl import TranscriptionExpert
from s3prl_mtl.errors import UserError
from tests.mistakes import user_error

CLASSES = {"asr": SpeechRecognition, "pr": PhonemeRecognition, "sf": SlotFilling}


@pytest.fixture
def build(golden: Any, tmp_path: Path) -> Any:
    def build(task: str, **head: Any) -> TranscriptionExpert:
        reference = golden(task)
        settings = dict(reference["downstream_expert"])
        section = CLASSES[task].head_section
        settings[section] = {**settings[section], **head}
        expert = CLASSES[task](32, 320, settings, tmp_path, labels=reference["labels"])
        expert.load_state_dict(reference["state_dict"])
        return expert.eval()

    return build


def test_transcripts_become_the_targets_of_s3prl(build: Any, golden: Any) -> None:
    for transcript, target in zip(
        golden("asr")["transcripts"], golden("asr")["others"][0], strict=True
    ):
        assert torch.equal(build("asr").target({"text": transcript}), target)


def test_phones_become_the_targets_of_s3prl(build: Any, golden: Any) -> None:
    for phones, target in zip(golden("pr")["phones"], golden("pr")["others"][0], strict=True):
        assert torch.equal(build("pr").target({"phones": phones.split()}), target)


def test_slots_become_the_targets_of_s3prl_and_are_written_back(build: Any, golden: Any) -> None:
    expert, reference = build("sf"), golden("sf")
    for annotation, target, text in zip(
        reference["iob"], reference["others"][0], reference["records"]["groundtruth"], strict=True
    ):
        words, slots = parse_iob(annotation)
        found = expert.target({"iob_words": words, "iob_slots": slots})
        assert torch.equal(found, target)
        assert expert.text(found.tolist()) == text


def test_words_after_and_between_slots_are_separated_by_one_space(build: Any) -> None:
    expert = build("sf")
    labels = {
        "iob_words": ["FLY", "ROME", "MILES", "NOW"],
        "iob_slots": ["O", "city", "artist", "O"],
    }
    symbols = list(expert.symbols_of(labels))
    expected = [*"FLY", " ", "B-city", *"ROME", "E-city", " ", "B-artist", *"MILES", "E-artist"]
    assert symbols == [*expected, " ", *"NOW"]
    assert expert.write(symbols) == "FLY B-city ROME E-city B-artist MILES E-artist NOW"


@pytest.mark.parametrize(
    ("task", "labels", "unknown"),
    [
        ("asr", {"text": "THÉ CAT"}, 1),
        ("sf", {"iob_words": ["7-UP"], "iob_slots": ["O"]}, 2),
    ],
)
def test_symbols_outside_the_vocabulary_are_unknown(
    build: Any, task: str, labels: dict[str, Any], unknown: int
) -> None:
    expert = build(task)
    found = expert.target(labels).tolist()
    assert found.count(expert.vocabulary.index("<unk>")) == unknown
    assert "<unk>" in expert.text(found)


def frames(expert: TranscriptionExpert, *symbols: str) -> torch.Tensor:
    return torch.tensor([expert.vocabulary.index(symbol) for symbol in symbols])


def test_ctc_decoding_keeps_letters_separated_by_a_blank_and_ends_with_the_utterance(
    build: Any,
) -> None:
    expert = build("sf", decoding="ctc")
    spoken = frames(expert, "L", "L", "<pad>", "L", "<eos>", "O", "X", "X")
    assert expert.text(expert.decode(spoken, 6)) == "LLO"


def test_merged_decoding_is_that_of_the_branch(build: Any) -> None:
    expert = build("sf")  # as s3prl's own settings have it
    spoken = frames(expert, "L", "L", "<pad>", "L", "<eos>", "O", "X", "X")
    assert expert.text(expert.decode(spoken, 6)) == "LOX"


def test_a_hypothesis_does_not_depend_on_its_batch(build: Any, golden: Any) -> None:
    for task in CLASSES:
        expert = build(task, decoding="ctc")
        features, targets = golden(task)["features"], golden(task)["others"][0]
        together: dict[str, list[Any]] = defaultdict(list)
        expert("dev", features, targets, records=together)
        alone: dict[str, list[Any]] = defaultdict(list)
        for feature, target in zip(features, targets, strict=True):
            expert("dev", [feature], [target], records=alone)
        assert together["hypothesis"] == alone["hypothesis"]


def test_training_batches_without_slots_leave_slot_scores_out(build: Any) -> None:
    expert = build("sf")
    records = {"reference": ["PLAY ON"], "hypothesis": [""]}
    values = expert.measure("train", records)
    assert {"slot_value_cer", "slot_edit_f1_full"}.isdisjoint(values)
    assert values["wer"] == 1 and values["slot_type_f1"] == 1
    with user_error("undefined-metric"):
        expert.measure("valid", records)


@pytest.mark.parametrize(
    ("head", "key"),
    [
        ({"decoding": "beam"}, "decoding"),
        ({"select": "UtteranceLevel"}, "select"),
        ({"project_dim": "wide"}, "project_dim"),
        ({"zero_infinity": None}, "zero_infinity"),
    ],
)
def test_invalid_settings_are_named_with_their_key(
    build: Any, head: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError) as error:
        build("pr", **head)
    assert error.value.where == f"pr.downstream_expert.model.{key}"


# ------------------------------------------------------------------ findings of a corpus


def cut(name: str, seconds: float, **labels: Any) -> Any:
    return SimpleNamespace(id=name, duration=seconds, custom={"labels": labels})


def seconds_of(count: int) -> float:
    """The duration of an utterance of so many frames."""
    return (400 + 320 * (count - 1)) / 16_000


@pytest.mark.parametrize(
    ("text", "needed"),
    [("HI", 4), ("HI HO", 7), ("HELLO", 8), ("AAA", 7)],
)
def test_a_target_needs_a_frame_for_each_symbol_and_between_equal_ones(
    text: str, needed: int, build: Any
) -> None:
    # The word boundary and the end symbol count too.
    assert build("asr").findings("train", [cut("a", seconds_of(needed), text=text)]) == []
    (finding,) = build("asr").findings("train", [cut("a", seconds_of(needed - 1), text=text)])
    assert (finding.code, finding.certain) == ("targets-too-long", True)
    assert finding.where == "utterance a"


@pytest.mark.parametrize("task", ["asr", "pr", "sf"])
def test_short_audio_of_any_transcription_task_is_found(task: str, build: Any) -> None:
    labels = {
        "asr": {"text": "HELLO HO"},
        "pr": {"phones": ["HH", "AH0", "L", "OW1", "Y", "UW1"]},
        "sf": {"iob_words": ["PLAY", "IT"], "iob_slots": ["O", "O"]},
    }[task]
    cuts = [cut("short", 0.1, **labels), *(cut(str(n), 2.0, **labels) for n in range(99))]
    for split, certain in (("train", False), ("test", False)):
        (finding,) = build(task).findings(split, cuts)
        assert (finding.certain, finding.where) == (certain, "utterance short")
    (finding,) = build(task).findings("train", cuts[:99])
    assert finding.certain, "more than 1 %"
    (finding,) = build(task).findings("test", cuts[:99])
    assert not finding.certain


def test_symbols_without_an_output_are_listed(build: Any) -> None:
    cuts = [cut("a", 5.0, text="HELLO"), cut("b", 5.0, text="HALL\u00c9 7")]
    (finding,) = build("asr").findings("test", cuts)
    assert (finding.code, finding.certain, finding.where) == (
        "label-unknown",
        False,
        "utterance b",
    )
    assert "'7', '\u00c9'" in finding.what


def test_an_unknown_symbol_is_never_recognised(build: Any) -> None:
    """The head may output the unknown symbol where the reference has it."""
    expert = build("pr")
    unknown = expert.symbol_numbers["<unk>"]
    features = [torch.zeros(3, 32)]
    logits = torch.full((1, 3, len(expert.vocabulary)), -10.0)
    logits[..., unknown] = 10.0
    expert._logits = lambda _: (logits, torch.tensor([3]))
    records: Any = defaultdict(list)
    target = torch.tensor([unknown, expert.symbol_numbers["<eos>"]])
    expert("test", features, [target], ["a"], records=records)
    assert expert.measure("test", records) == {"per": 1.0}
