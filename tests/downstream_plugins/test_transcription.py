"""Symbols of asr, pr and sf, and their decoding."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from downstream_plugins.asr import SpeechRecognition
from downstream_plugins.pr import PhonemeRecognition
from downstream_plugins.sf import SlotFilling
from downstream_plugins.sf.corpus import parse_iob
from s3prl_mtl import TranscriptionExpert
from s3prl_mtl.errors import UserError
from s3prl_mtl.tasks.ctc import ZEROED
from s3prl_mtl.tracking.recorder import Report
from tests.comparison import assert_same
from tests.downstream_plugins.fake_manifest import FakeManifest
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
        texts = [expert.hypotheses(records["frame_tokens"]) for records in (together, alone)]
        assert texts[0] == texts[1]


def test_training_batches_without_slots_leave_slot_scores_out(build: Any) -> None:
    expert = build("sf")
    records = {"reference": ["PLAY ON"], "hypothesis": [""]}
    values = expert.measure("train", records)
    assert {"slot_value_cer", "slot_edit_f1_full"}.isdisjoint(values)
    assert values["wer"] == 1 and values["slot_type_f1"] == 1


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


@pytest.mark.parametrize(
    ("words", "slots"),
    [
        ([], []),
        (["PLAY", "MUSIC"], ["O", "O"]),
        (["PLAY", ".", "!"], ["O", "artist", "artist"]),  # slots of punctuation are dropped
    ],
)
@pytest.mark.parametrize("split", ["valid", "test", "train"])
def test_an_evaluated_split_without_slots_is_an_error_before_training(
    split: str, words: list[str], slots: list[str], build: Any, cut: Any
) -> None:
    expert = build("sf")
    expert.train_split = "train"
    slot = expert.labels["slots"][0]
    other = cut("b", iob_words=["PLAY", "JAZZ"], iob_slots=["O", slot])
    empty = cut("a", iob_words=words, iob_slots=slots)
    assert [
        f
        for f in expert.findings(split, FakeManifest([empty, other]))
        if f.code == "undefined-metric"
    ] == []
    found = [
        f for f in expert.findings(split, FakeManifest([empty, empty])) if "slots" in str(f.fix)
    ]
    assert [(f.code, f.certain) for f in found] == [("undefined-metric", split != "train")]
    assert repr(split) in str(found[0].where)


@pytest.mark.parametrize(
    ("task", "empty", "other"),
    [
        ("asr", {"text": ""}, {"text": "A"}),
        ("pr", {"phones": []}, {"phones": ["AH0"]}),
        (
            "sf",
            {"iob_words": ["?"], "iob_slots": ["O"]},
            {"iob_words": ["A"], "iob_slots": ["O"]},
        ),
    ],
)
def test_a_split_whose_transcripts_are_all_empty_is_an_error_before_training(
    task: str, empty: dict, other: dict, build: Any, cut: Any
) -> None:
    expert = build(task)

    def found(*cuts: Any) -> list[tuple[str, bool]]:
        findings = [
            f for f in expert.findings("test", FakeManifest(cuts)) if "transcripts" in str(f.fix)
        ]
        return [(f.code, f.certain) for f in findings]

    assert found(cut("a", **empty), cut("b", **other)) == []
    assert found(cut("a", **empty), cut("b", **empty)) == [("undefined-metric", True)]


@pytest.mark.parametrize("split", ["train", "test-clean"])
@pytest.mark.parametrize(
    ("hypotheses", "expected"),
    [
        (["", ""], {"wer": 1.0, "uer": 1.0}),
        # A boundary without a word: 5 edits make "A | B |" (of 7 characters, with "C |") of it.
        (["|", ""], {"wer": 1.0, "uer": 9.0}),
        (["A | B |", "C |"], {"wer": 0.0, "uer": 0.0}),
        (["A |", ""], {"wer": 2.0, "uer": 7 / 3}),  # divided by the length of the hypotheses
    ],
)
def test_empty_hypotheses_are_wrong_by_100_percent_as_in_the_branch(
    hypotheses: list[str], expected: dict[str, float], split: str, build: Any
) -> None:
    expert = build("asr", scoring="branch")
    records = {"reference": ["A | B |", "C |"], "hypothesis": hypotheses}
    assert expert.measure(split, records) == pytest.approx(expected)


REFERENCES = {"asr": ["|", ""], "sf": ["PLAY", "STOP"]}
"""Without a word, and without a slot: some metrics are undefined."""


@pytest.mark.parametrize("scoring", ["branch", "reference"])
@pytest.mark.parametrize("task", ["asr", "sf"])
def test_what_is_undefined_is_left_out_in_training_and_nan_in_an_evaluation(
    task: str, scoring: str, build: Any
) -> None:
    expert = build(task, **({"scoring": scoring} if task == "asr" else {}))
    records = {"reference": REFERENCES[task], "hypothesis": [*REFERENCES[task]]}
    undefined = {"asr": {"wer"}, "sf": {"slot_value_cer", "slot_value_wer"}}[task]
    undefined |= {"slot_edit_f1_full", "slot_edit_f1_part"} if task == "sf" else set()
    everything = {metric.name for metric in expert.metrics if not metric.optional}
    assert expert.measure("train", records).keys() == everything - undefined
    values = expert.measure("test", records)
    assert values.keys() == everything
    assert {name for name, value in values.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_a_window_in_which_nothing_is_defined_reports_the_loss(
    task: str, build: Any, scalars: Any
) -> None:
    expert = build(task)
    records: dict[str, list] = {"loss": [2.0, 4.0], "reference": [], "hypothesis": []}
    expert.log_records("train", records, scalars, global_step=1)
    assert scalars.scalars == {f"{task}/train-loss": 3.0}
    with user_error("undefined-metric"):
        expert.log_records("test", records, scalars, global_step=1)


def wider(head: dict[str, torch.Tensor], outputs: int) -> dict[str, torch.Tensor]:
    """A head with more outputs after its own."""
    return {
        name: torch.cat([value, torch.full((outputs, *value.shape[1:]), 7.0)])
        if name.startswith("model.linear.")
        else value
        for name, value in head.items()
    }


def test_a_head_of_s3prl_with_an_empty_slot_loses_its_two_outputs(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expert = build("sf")
    own = {name: value.clone() for name, value in expert.state_dict().items()}
    expert.load_state_dict(expert.from_s3prl(wider(own, 2)))
    assert_same(own, dict(expert.state_dict()))
    assert "slots.txt" in caplog.text


@pytest.mark.parametrize(("task", "outputs"), [("sf", 0), ("sf", 1), ("sf", 3), ("asr", 2)])
def test_other_heads_of_s3prl_are_loaded_as_they_are(task: str, outputs: int, build: Any) -> None:
    expert = build(task)
    head = wider(dict(expert.state_dict()), outputs)
    assert expert.from_s3prl(head) is head


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
    assert (
        build("asr").findings("train", FakeManifest([cut("a", seconds_of(needed), text=text)]))
        == []
    )
    (finding,) = build("asr").findings(
        "train", FakeManifest([cut("a", seconds_of(needed - 1), text=text)])
    )
    assert (finding.code, finding.certain) == ("targets-too-long", True)
    assert finding.where == "utterance a"


@pytest.mark.parametrize("task", ["asr", "pr", "sf"])
def test_short_audio_of_any_transcription_task_is_found(task: str, build: Any) -> None:
    labels = {
        "asr": {"text": "HELLO HO"},
        "pr": {"phones": ["HH", "AH0", "L", "OW1", "Y", "UW1"]},
        "sf": {"iob_words": ["PLAY", "IT"], "iob_slots": ["O", build("sf").labels["slots"][0]]},
    }[task]
    cuts = [cut("short", 0.1, **labels), *(cut(str(n), 2.0, **labels) for n in range(99))]
    for split in ("train", "test"):
        (finding,) = build(task).findings(split, FakeManifest(cuts))
        assert (finding.certain, finding.where) == (False, "utterance short")
    for split in ("train", "test"):
        (finding,) = build(task).findings(split, FakeManifest(cuts[:99]))
        assert finding.certain, "more than 1 %"


def test_symbols_without_an_output_are_listed(build: Any) -> None:
    cuts = [cut("a", 5.0, text="HELLO"), cut("b", 5.0, text="HALL\u00c9 7")]
    (finding,) = build("asr").findings("test", FakeManifest(cuts))
    assert (finding.code, finding.certain, finding.where) == (
        "label-unknown",
        False,
        "utterance b",
    )
    assert "1 of 2 utterances" in finding.what
    assert "'\u00c9' 1" in finding.what and "'7' 1" in finding.what


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
    report = Report("pr", "test")
    expert.log_records("test", records, report, global_step=1)
    assert report.values["per"] == 1.0


def test_utterances_whose_loss_is_set_to_zero_are_counted_in_training(build: Any) -> None:
    expert = build("asr")
    targets = [torch.tensor(t) for t in ([4, 4, 5], [4, 5, 6], [4] * 6, [5])]
    features = [torch.randn(n, expert.upstream_dim) for n in (3, 3, 11, 1)]
    logits, lengths = expert._logits(features)
    losses = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
        lengths,
        torch.tensor([len(target) for target in targets]),
        reduction="none",
    )
    infinite = int(losses.isinf().sum())
    assert 0 < infinite < 4
    expert.zero_infinity = True
    for split, counted in (("train", infinite), ("dev", None)):
        expert.train_split = "train"
        report = Report("asr", split)
        for _ in range(2):
            records = defaultdict(list)
            expert(split, features, targets, records=records)
            expert.log_records(split, records, report, global_step=1)
        assert report.values.get(ZEROED) == counted
    expert.zero_infinity = False
    records = defaultdict(list)
    expert("train", features, targets, records=records)
    assert "zeroed" not in records


@pytest.mark.parametrize("task", ["asr", "pr", "sf"])
def test_the_confidence_is_that_of_the_path_by_its_length(task: str, build: Any) -> None:
    expert = build(task)
    features = [torch.randn(frames, 32, generator=torch.manual_seed(frames)) for frames in (9, 40)]
    with torch.no_grad():
        answers = expert.predict(features, [0, 0])
        for feature, answer in zip(features, answers, strict=True):
            logits, (length,) = expert._logits([feature])
            path = F.softmax(logits[0, :length], dim=-1).amax(dim=-1).double()
            expected = float(path.prod()) ** (1 / int(length))
            assert answer["confidence"] == pytest.approx(expected, rel=1e-4)
            assert 0 < answer["confidence"] <= 1
