"""Tasks that classify utterances: labels, crops, draws."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream_plugins.er import EmotionRecognition
from downstream_plugins.ic import IntentClassification
from downstream_plugins.ks import KeywordSpotting
from downstream_plugins.sid import SpeakerIdentification
from s3prl_mtl import ClassificationExpert
from s3prl_mtl.data import load_waveform
from s3prl_mtl.errors import UserError
from tests.mistakes import user_error

HEAD = {
    "projector_dim": 4,
    "select": "UtteranceLevel",
    "UtteranceLevel": {"pooling": "MeanPooling"},
}


def settings(**datarc: Any) -> dict[str, Any]:
    return {"modelrc": HEAD, "datarc": datarc}


@pytest.fixture
def speech_commands(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> KeywordSpotting:
    paths = {
        "speech_commands_root": tiny_corpus / "speech_commands_v0.01",
        "speech_commands_test_root": tiny_corpus / "speech_commands_test_set_v0.01",
    }
    return KeywordSpotting(
        8, 320, settings(**paths, train_batch_size=16), tmp_path, cache_dir=manifest_cache
    )


def test_classes_are_numbered_in_the_order_of_the_label_space(tmp_path: Path) -> None:
    expert = EmotionRecognition(8, 320, settings(), tmp_path, labels={"classes": ["a", "b", "c"]})
    assert [expert.target({"class": name}) for name in "cab"] == [2, 0, 1]
    labels = {"action": ["on", "off"], "object": ["lamp"], "location": ["here", "there"]}
    intents = IntentClassification(8, 320, settings(), tmp_path, labels=labels)
    wanted = {"action": "off", "object": "lamp", "location": "there"}
    assert torch.equal(intents.target(wanted), torch.tensor([1, 0, 1]))
    assert intents.model.post_net.linear.out_features == 5


def test_a_class_that_the_head_lacks_is_named_before_anything_is_read(
    speech_commands: KeywordSpotting, tmp_path: Path, manifest_cache: Path
) -> None:
    labels = {"classes": [c for c in speech_commands.labels["classes"] if c != "stop"]}
    expert = KeywordSpotting(
        8, 320, speech_commands.settings, tmp_path, labels=labels, cache_dir=manifest_cache
    )
    with user_error("label-unknown", where="classes"):
        expert.get_dataloader("test")


def test_training_utterances_are_cut_to_max_timestep_and_others_are_not(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    root = tiny_corpus / "VoxCeleb1"
    paths = {"file_path": root, "meta_data": root / "iden_split.txt", "max_timestep": 9000}
    expert = SpeakerIdentification(8, 320, settings(**paths), tmp_path, cache_dir=manifest_cache)
    cut = expert.cuts("dev")[0]
    whole = load_waveform(cut)
    assert len(whole) > 9000
    generator = torch.Generator().manual_seed(0)
    crops = [expert.waveform(cut, "train", generator) for _ in range(2)]
    assert [len(crop) for crop in crops] == [9000, 9000]
    assert not torch.equal(*crops)
    windows = whole.unfold(0, 9000, 1)
    assert all((windows == crop).all(dim=1).any() for crop in crops)
    assert torch.equal(expert.waveform(cut, "dev", generator), whole)


def test_keywords_are_3_db_softer_and_silence_is_a_random_second(
    speech_commands: KeywordSpotting,
) -> None:
    cuts = speech_commands.cuts("train")
    generator = torch.Generator().manual_seed(0)
    word = next(cut for cut in cuts if cut.custom["labels"]["class"] == "yes")
    expected = load_waveform(word) * 10 ** (-3 / 20)
    found = speech_commands.waveform(word, "train", generator)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    noise = next(cut for cut in cuts if cut.custom["labels"]["class"] == "_silence_")
    assert noise.duration > 1
    seconds = [speech_commands.waveform(noise, "train", generator) for _ in range(2)]
    assert [len(second) for second in seconds] == [16000, 16000]
    assert not torch.equal(*seconds)


def test_training_draws_every_keyword_equally_often(speech_commands: KeywordSpotting) -> None:
    cuts = speech_commands.cuts("train")
    weights = speech_commands.draw_weights("train", cuts)
    assert weights is not None
    totals: Counter[str] = Counter()
    for cut, weight in zip(cuts, weights, strict=True):
        totals[cut.custom["labels"]["class"]] += weight
    assert set(totals) == set(speech_commands.labels["classes"])
    assert len({round(total, 6) for total in totals.values()}) == 1
    assert speech_commands.draw_weights("dev", speech_commands.cuts("dev")) is not None
    assert speech_commands.draw_weights("test", cuts) is None


def test_an_intent_is_right_only_if_all_its_slots_are(tmp_path: Path) -> None:
    labels = {"action": ["on", "off"], "object": ["lamp"], "location": ["here", "there"]}
    expert = IntentClassification(8, 320, settings(), tmp_path, labels=labels)
    records = {
        "reference": [[0, 0, 0], [1, 0, 1], [1, 0, 0]],
        "hypothesis": [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
    }
    assert expert.measure("test", records) == {"acc": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"projector_dim": None}, "modelrc.projector_dim"),
        ({"projector_dim": 0}, "modelrc.projector_dim"),
        ({"select": "RNNs"}, "modelrc.select"),
    ],
)
def test_invalid_settings_are_named_with_their_key(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError) as error:
        EmotionRecognition(
            8, 320, {"modelrc": {**HEAD, **change}}, tmp_path, labels={"classes": ["a"]}
        )
    assert error.value.where == f"er.downstream_expert.{key}"


def test_a_corpus_whose_path_is_not_set_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        EmotionRecognition(8, 320, settings(test_fold="fold1"), tmp_path)
    assert error.value.where == "er.downstream_expert.datarc.root"


@pytest.mark.parametrize("expert", [KeywordSpotting, SpeakerIdentification, EmotionRecognition])
def test_a_classification_task_takes_under_60_lines(expert: type[ClassificationExpert]) -> None:
    folder = Path(__file__).parents[2] / "downstream_plugins" / expert.name
    assert len((folder / "__init__.py").read_text().splitlines()) < 60


def test_cuts_that_are_no_manifest_are_an_error_of_the_report(
    speech_commands: KeywordSpotting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = list(speech_commands.cuts("dev"))
    monkeypatch.setattr(KeywordSpotting, "cuts", lambda expert, split: cuts)
    monkeypatch.setattr(KeywordSpotting, "findings", lambda expert, split, cuts: [])
    with user_error("expert-invalid", where="KeywordSpotting"):
        speech_commands.report(["dev"])
