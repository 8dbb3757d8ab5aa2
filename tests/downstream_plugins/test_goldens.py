"""Experts equal s3prl's experts: names, losses, gradients, metrics."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream_plugins.asr import SpeechRecognition
from downstream_plugins.er import EmotionRecognition
from downstream_plugins.ic import IntentClassification
from downstream_plugins.ks import KeywordSpotting
from downstream_plugins.pr import PhonemeRecognition
from downstream_plugins.sd import SpeakerDiarization
from downstream_plugins.sf import SlotFilling
from downstream_plugins.sid import SpeakerIdentification
from downstream_plugins.sv import SpeakerVerification
from s3prl_mtl import TaskExpert
from s3prl_mtl.registry.plugins import task_defaults

EXPERTS: dict[str, type[TaskExpert]] = {
    "asr": SpeechRecognition,
    "pr": PhonemeRecognition,
    "sf": SlotFilling,
    "ks": KeywordSpotting,
    "ic": IntentClassification,
    "sid": SpeakerIdentification,
    "er": EmotionRecognition,
    "sv_train": SpeakerVerification,
    "sv_eval": SpeakerVerification,
    "sd": SpeakerDiarization,
}
# s3prl logs these in percent, ours are fractions.
PERCENT = {
    ("sf", "slot_edit_f1_full"),
    ("sf", "slot_edit_f1_part"),
    ("asr", "wer"),
    ("asr", "uer"),
}
# s3prl's word for ours.
RENAMED = {("pr", "wer"): "per", ("ic", "intent_loss"): "loss", ("sv_eval", "EER"): "eer"}


def build(case: str, golden: dict[str, Any], folder: Path) -> TaskExpert:
    return EXPERTS[case](
        upstream_dim=32,
        upstream_rate=320,
        downstream_expert=golden["downstream_expert"],
        expdir=folder,
        labels=golden["labels"],
    )


@pytest.fixture(params=EXPERTS)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_fresh_head_has_the_names_and_shapes_and_best_score_of_s3prl(
    case: str, golden: Any, tmp_path: Path
) -> None:
    expected = golden(case)["state_dict"]
    found = build(case, golden(case), tmp_path).state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert torch.equal(found["best_score"], expected["best_score"])


def test_loss_gradients_and_metrics_equal_those_of_s3prl(
    case: str, golden: Any, tmp_path: Path, scalars: Any
) -> None:
    reference = golden(case)
    expert = build(case, reference, tmp_path)
    expert.load_state_dict(reference["state_dict"], strict=True)
    expert.eval()
    features = [f.clone().requires_grad_() for f in reference["features"]]
    records: dict[str, list[Any]] = defaultdict(list)
    split = reference["split"]

    loss = expert(split, features, *reference["others"], records=records)

    torch.testing.assert_close(loss.detach().float(), reference["loss"].float(), rtol=1e-5, atol=0)
    if reference["feature_grads"] is not None:
        loss.backward()
        for feature, gradient in zip(features, reference["feature_grads"], strict=True):
            # Both sides are float32: each is off by up to half of this from the true gradient.
            scale = gradient.abs().max().item()
            torch.testing.assert_close(feature.grad, gradient, rtol=1e-5, atol=1e-5 * scale)
        norms = {
            name: parameter.grad.norm().item()
            for name, parameter in expert.named_parameters()
            if parameter.grad is not None
        }
        assert norms == pytest.approx(reference["param_grad_norms"], rel=1e-5)

    expert.log_records(split, records, scalars, global_step=7, batch_ids=[0], total_batch_num=1)
    expected = {}
    for tag, value in reference.get("logged", {}).items():
        metric = tag.rpartition(f"{split}-")[2]
        ours = RENAMED.get((case, metric), metric)
        tag_of_ours = f"{expert.name}/{split}-{ours}"
        expected[tag_of_ours] = value / 100 if (case, metric) in PERCENT else value
    assert expected or case == "sv_train"
    assert {tag: scalars.scalars[tag] for tag in expected} == pytest.approx(expected, rel=1e-5)


def test_asr_rates_are_over_the_length_of_the_reference_by_default(
    golden: Any, tmp_path: Path, scalars: Any
) -> None:
    # The branch divides by the length of its hypotheses and takes the characters of the spaced-out
    # text for units; s3prl has since corrected both.
    reference = golden("asr")
    modelrc = {**reference["downstream_expert"]["modelrc"], "scoring": "reference"}
    settings = {**reference["downstream_expert"], "modelrc": modelrc}
    expert = build("asr", {**reference, "downstream_expert": settings}, tmp_path)
    expert.load_state_dict(reference["state_dict"])
    records: dict[str, list[Any]] = defaultdict(list)
    expert.eval()(reference["split"], reference["features"], *reference["others"], records=records)
    assert expert.hypotheses(records["frame_tokens"]) == reference["records"]["pred_tokens"]
    assert records["reference"] == reference["records"]["target_tokens"]

    expert.log_records(reference["split"], records, scalars, 0)
    # No word of eleven is right, and of 51 units only the first transcript's C.
    assert scalars.scalars["asr/dev-clean-wer"] == pytest.approx(11 / 11)
    assert scalars.scalars["asr/dev-clean-uer"] == pytest.approx(50 / 51)
    assert task_defaults("asr")["downstream_expert"]["modelrc"]["scoring"] == "reference"


def test_the_loss_is_logged_and_training_records_are_accepted(
    case: str, golden: Any, tmp_path: Path, scalars: Any
) -> None:
    reference = golden(case)
    if case == "sv_eval":
        reference |= {"others": [None, [0, 1, 2, 3, 4, 5]]}
    expert = build(case, reference, tmp_path)
    records: dict[str, list[Any]] = defaultdict(list)
    losses = [
        expert("train", reference["features"], *reference["others"], records=records).item()
        for _ in range(2)
    ]
    saved = expert.log_records("train", records, scalars, 3, [0, 1], 2)
    assert saved == []
    assert scalars.scalars[f"{expert.name}/train-loss"] == pytest.approx(sum(losses) / 2)
    named = {tag.partition("-")[2] for tag in scalars.scalars} - {"loss"}
    always = {metric.name for metric in expert.metrics if not metric.optional}
    assert named == (always if "sv" not in case else set())


def test_no_file_is_needed_where_the_label_space_is_given(
    case: str, golden: Any, tmp_path: Path
) -> None:
    reference = golden(case)
    nowhere = tmp_path / "nowhere"
    paths = dict.fromkeys(
        (
            *("libri_root", "snips_root", "speech_commands_root", "speech_commands_test_root"),
            *("file_path", "meta_data", "test_trials", "root", "data_dir"),
        ),
        str(nowhere),
    )
    settings = dict(reference["downstream_expert"])
    settings["datarc"] = {**settings.get("datarc", {}), **paths, "lexicon": [str(nowhere)]}
    expert = EXPERTS[case](32, 320, settings, nowhere / "expdir", labels=reference["labels"])
    assert expert.labels == reference["labels"]
    assert not nowhere.exists()
