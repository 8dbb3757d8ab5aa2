"""The place of a mistake that is found before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error


@pytest.fixture
def config(tiny_corpus: Path, manifest_cache: Path) -> dict[str, Any]:
    return make_config(tiny_corpus, manifest_cache, "er")


def test_a_missing_corpus_is_placed_in_the_settings_of_its_task(config, tmp_path: Path):
    config["er"]["downstream_expert"]["datarc"]["root"] = "/no/iemocap"
    with user_error("corpus-incomplete", where=r"^er\.downstream_expert\.datarc$"):
        MultiTaskRunner(config, tmp_path)


def test_a_mistake_in_a_split_keeps_its_place(config, tmp_path: Path):
    config["er"]["test_splits"] = ["tset"]
    with user_error("unknown-name", where="'tset' of er") as caught:
        MultiTaskRunner(config, tmp_path).train()
    assert caught.value.what.startswith("er tset: ")


def test_a_training_split_with_too_few_utterances_is_named(config, tmp_path: Path):
    runner = MultiTaskRunner(config, tmp_path)
    runner.tasks["er"].stream.num_shares = 10**6
    with user_error("corpus-empty", where="'train' of er"):
        runner.train()


@pytest.mark.parametrize("start", ["train", "try_out"])
def test_what_scoring_needs_is_checked_before_the_first_step(
    start: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(tiny_corpus, manifest_cache, "sv")
    datarc = config["sv"]["downstream_expert"]["datarc"]
    listed = (tiny_corpus / "VoxCeleb1" / "veri_test2.txt").read_text().splitlines()
    targets = tmp_path / "targets.txt"
    targets.write_text("".join(f"{line}\n" for line in listed if line.startswith("1")))
    datarc["test_trials"] = str(targets)
    runner = MultiTaskRunner(config, tmp_path / "run")
    with user_error("undefined-metric", where="'test'"):
        getattr(runner, start)()
    assert runner.step == 0


def test_missing_corpora_are_reported_together_before_an_encoder_is_built(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(tiny_corpus, manifest_cache, "er,ks,asr")
    config["er"]["downstream_expert"]["datarc"]["root"] = "/no/iemocap"
    config["asr"]["downstream_expert"]["datarc"]["libri_root"] = "/no/librispeech"
    config["upstream"] = {**config["upstream"], "name": "hubert", "ckpt": str(tmp_path / "absent")}
    with user_error("several") as caught:
        MultiTaskRunner(config, tmp_path)
    assert "/no/iemocap" in str(caught.value) and "/no/librispeech" in str(caught.value)
    assert "absent" not in str(caught.value)


def test_a_data_folder_that_does_not_exist_is_one_error(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    config = make_config(tiny_corpus, manifest_cache, "er,ks,asr")
    moved = yaml.safe_load(yaml.safe_dump(config).replace(str(tiny_corpus), "/no/data"))
    with user_error("file-missing", where="--data") as caught:
        MultiTaskRunner(moved, tmp_path)
    assert "/no/data" in caught.value.what
