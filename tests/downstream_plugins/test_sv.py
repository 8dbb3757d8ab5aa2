"""Speaker verification: embeddings, trials, trimming."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from downstream_plugins.sv import SpeakerVerification
from downstream_plugins.sv.corpus import preprocess
from s3prl_mtl.data import load_waveform
from s3prl_mtl.errors import UserError
from s3prl_mtl.metrics import equal_error_rate
from tests.downstream_plugins.fake_manifest import FakeManifest
from tests.mistakes import user_error


@pytest.fixture
def head(golden: Any) -> dict[str, Any]:
    return golden("sv_train")["downstream_expert"]["modelrc"]


@pytest.fixture
def expert(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, head: dict[str, Any]
) -> SpeakerVerification:
    root = tiny_corpus / "VoxCeleb1"
    datarc = {
        "file_path": root,
        "test_trials": root / "veri_test2.txt",
        "max_timestep": 32000,
        "eval_batch_size": 3,
    }
    torch.manual_seed(0)
    return SpeakerVerification(
        32, 320, {"datarc": datarc, "modelrc": head}, tmp_path, cache_dir=manifest_cache
    )


def test_an_embedding_does_not_depend_on_its_batch(
    golden: Any, tmp_path: Path, head: dict[str, Any]
) -> None:
    reference = golden("sv_eval")
    expert = SpeakerVerification(32, 320, {"modelrc": head}, tmp_path, labels=reference["labels"])
    expert.load_state_dict(reference["state_dict"])
    names = [f"u{number}" for number in range(len(reference["features"]))]
    together: dict[str, list[Any]] = defaultdict(list)
    alone: dict[str, list[Any]] = defaultdict(list)
    loss = expert("test", reference["features"], names, [None] * len(names), records=together)
    assert loss == 0
    for name, feature in zip(names, reference["features"], strict=True):
        expert("test", [feature], [name], [None], records=alone)
    assert [name for name, _ in together["embeddings"]] == names
    for (_, left), (_, right) in zip(together["embeddings"], alone["embeddings"], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_trial_is_scored_by_the_cosine_of_its_two_utterances(
    expert: SpeakerVerification, split: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings: dict[str, torch.Tensor] = {}
    for wavs, names, labels in expert.get_dataloader(split):
        assert labels == [None] * len(wavs)
        for name in names:
            assert name not in embeddings
            embeddings[name] = torch.randn(20, generator=generator)
    records = {"embeddings": [(name, F.normalize(e, dim=0)) for name, e in embeddings.items()]}
    trials = expert.corpus.trials(split)
    scores = [
        F.cosine_similarity(embeddings[t.first_id], embeddings[t.second_id], dim=0).item()
        for t in trials
    ]
    expected = equal_error_rate([t.label for t in trials], scores).rate
    assert expert.measure(split, records) == {"eer": pytest.approx(expected, abs=1e-6)}


def test_trials_whose_audio_could_not_be_read_are_left_out_and_counted(
    expert: SpeakerVerification, caplog: pytest.LogCaptureFixture
) -> None:
    trials = expert.corpus.trials("test")
    names = dict.fromkeys(name for t in trials for name in (t.first_id, t.second_id))
    gone = trials[0].first_id
    touched = sum(gone in (t.first_id, t.second_id) for t in trials)
    embeddings = [(name, F.normalize(torch.randn(20), dim=0)) for name in names if name != gone]
    with caplog.at_level(logging.WARNING):
        expert.measure("test", {"embeddings": embeddings})
    (record,) = caplog.records
    assert (record.name, record.args) == ("downstream_plugins.sv", ("test", touched, len(trials)))


def test_training_utterances_are_trimmed_and_cut(expert: SpeakerVerification) -> None:
    cuts = expert.cuts("train")
    generator = torch.Generator().manual_seed(0)
    for cut in list(cuts)[:4]:
        trimmed = preprocess(load_waveform(cut))
        assert len(trimmed) > 32000
        found = expert.waveform(cut, "train", generator)
        assert len(found) == 32000
        starts = (trimmed[:-31999] == found[0]).nonzero()
        assert any(torch.equal(trimmed[start : start + 32000], found) for start in starts)
        assert torch.equal(expert.waveform(cut, "dev", generator), trimmed)


def test_an_utterance_that_is_too_short_for_the_x_vector_is_repeated(
    expert: SpeakerVerification, tmp_path: Path
) -> None:
    import numpy as np
    import soundfile
    from lhotse import Recording

    path = tmp_path / "short.wav"
    samples = 0.3 * np.sin(np.arange(2000) / 7)
    soundfile.write(path, samples, 16000)
    cut = Recording.from_file(path).to_cut()
    found = expert.waveform(cut, "test", torch.Generator())
    assert (len(found) - 400) // 320 + 1 >= 16
    torch.testing.assert_close(found[:2000], load_waveform(cut))
    torch.testing.assert_close(found[2000:4000], load_waveform(cut))


def test_a_speaker_that_the_head_lacks_is_named(
    expert: SpeakerVerification, tmp_path: Path, manifest_cache: Path
) -> None:
    other = SpeakerVerification(
        *(32, 320, expert.settings, tmp_path),
        labels={"speakers": ["id99999"]},
        cache_dir=manifest_cache,
    )
    with user_error("label-unknown", where="speakers"):
        other.get_dataloader("train")


def test_another_module_is_refused_with_its_key(tmp_path: Path, head: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        SpeakerVerification(
            *(32, 320, {"modelrc": {**head, "agg_module": "ASP"}}, tmp_path),
            labels={"speakers": ["a", "b"]},
        )
    assert error.value.where == "sv.downstream_expert.modelrc.agg_module"


@pytest.mark.parametrize(
    ("trials", "usable", "expected"),
    [
        (["1 a b", "0 a c"], "abc", []),
        (["1 a b", "1 b c"], "abc", [("undefined-metric", True)]),
        (["0 a b", "0 b c"], "abc", [("undefined-metric", True)]),
        (["1 a b", "0 a c"], "ab", [("undefined-metric", True)]),  # c is missing
        (["1 a b", "0 a c"], "", [("undefined-metric", True)]),
        (["1 a b", "0 a c", "0 b c", "1 c d"], "abc", [("corpus-incomplete", False)]),
    ],
)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_trials_are_checked_before_training(
    split: str,
    trials: list[str],
    usable: str,
    expected: list[tuple[str, bool]],
    expert: SpeakerVerification,
    tmp_path: Path,
    cut: Any,
) -> None:
    listed = tmp_path / "trials.txt"
    utterance = {letter: f"id1030{number}/v/1.wav" for number, letter in enumerate("abcd")}
    listed.write_text(
        "".join(
            f"{label} {utterance[a]} {utterance[b]}\n" for label, a, b in map(str.split, trials)
        )
    )
    expert.corpus.test_trials = expert.corpus.dev_trials = listed
    cuts = FakeManifest(cut(utterance[name]) for name in usable)
    findings = expert.findings(split, cuts)
    assert [(finding.code, finding.certain) for finding in findings] == expected
    assert all(repr(split) in str(finding.where) for finding in findings)


def test_the_order_of_the_speakers_of_a_head_of_s3prl_is_a_warning(
    expert: SpeakerVerification, caplog: pytest.LogCaptureFixture
) -> None:
    head = dict(expert.state_dict())
    assert expert.from_s3prl(head) == head
    assert "objective.W" in caplog.text
    caplog.clear()
    expert.from_s3prl({name: head[name] for name in head if name != "objective.W"})
    assert caplog.text == ""


@pytest.mark.parametrize("left", [0, 1, 3])
def test_speakers_without_a_training_utterance_are_one_warning(
    expert: SpeakerVerification, left: int
) -> None:
    cuts = expert.cuts("train")
    assert expert.findings("train", cuts) == []
    speakers = expert.labels["speakers"]
    kept = cuts.filter(lambda cut: cut.custom["labels"]["speaker"] in speakers[:left])
    (finding,) = expert.findings("train", kept)
    assert not finding.certain and finding.where == f"speaker {speakers[left]}"
    assert finding.what.startswith(f"{len(speakers) - left} of {len(speakers)}")
    assert not any("speaker" in str(found.where) for found in expert.findings("test", kept))
