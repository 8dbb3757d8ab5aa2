"""The runner supports the behaviour that s3prl's runner accepts of experts."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import s3prl_mtl
from s3prl_mtl.cli.main import main
from s3prl_mtl.data.epoch_reader import EpochReader
from s3prl_mtl.distributed.world import World
from s3prl_mtl.errors import UserError
from s3prl_mtl.study.plan import Plan
from s3prl_mtl.study.preflight import check_runs
from s3prl_mtl.study.settings import StudySettings
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.tracking.results_table import results_table
from s3prl_mtl.training.preflight import check_splits
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.distributed.ranks import run_ranks
from tests.mistakes import user_error
from tests.s3prl_compat.corpora import fluent_commands, speech_commands, write_config
from tests.s3prl_compat.test_experts import run_config


@pytest.fixture
def tones(expert_folder, tmp_path: Path) -> dict[str, Any]:
    return run_config([f"s3prl:{expert_folder()}"], tmp_path, tmp_path / "cache")


def test_records_that_are_not_lists_reach_log_records_unchanged(tones, tmp_path, caplog):
    runner = MultiTaskRunner(tones, tmp_path / "run")
    with caplog.at_level(logging.INFO):
        runner.train()
    assert read_results(tmp_path / "run")["s3prl:tones"]["dev"] == {"seen": 5.0}
    assert "measured: dev" in [record.getMessage() for record in caplog.records]


def test_settings_that_an_expert_removes_are_restored_for_the_next_loader(tones, tmp_path):
    runner = MultiTaskRunner(tones, tmp_path / "run")
    expert = runner.tasks["s3prl:tones"].expert
    for _ in range(3):
        expert.get_dataloader("train")
    assert expert.workers_seen == [0, 0, 0]
    assert tones["s3prl:tones"]["downstream_expert"]["corpus"]["num_workers"] == 0


def test_a_missing_folder_of_an_expert_does_not_affect_other_heads(
    expert_folder, tiny_corpus: Path, tmp_path: Path, caplog
):
    folder = expert_folder()
    config = run_config([f"s3prl:{folder}", "ks"], tiny_corpus, tmp_path / "cache")
    run = tmp_path / "run"
    MultiTaskRunner(config, run).train()
    wave = torch.sin(torch.arange(16_000) / 10)
    for gone in (False, True):
        if gone:
            shutil.rmtree(folder)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trained = s3prl_mtl.load(run, device="cpu")
        loading = [r for r in caplog.records if r.name == "s3prl_mtl.inference.loading"]
        assert any("s3prl:tones" in record.getMessage() for record in loading)
        assert trained.tasks == ["ks"] and list(trained.predict([wave])[0]) == ["ks"]
        with pytest.raises(UserError) as caught:
            trained.predict([wave], ["s3prl:tones"])
        assert "tones" in str(caught.value)


def test_an_unknown_split_is_named(tones, tmp_path: Path):
    runner = MultiTaskRunner(tones, tmp_path / "run")
    with user_error("unknown-name", where=r"test_splits") as caught:
        runner.evaluate([("s3prl:tones", "test")], None)
    assert "tones'" in caught.value.what and "'test'" in caught.value.what


def test_an_unknown_split_is_found_before_training(expert_folder, tmp_path: Path):
    words, more = [f"s3prl:{expert_folder()}"], {"s3prl:tones": {"test_splits": ["test"]}}
    config = run_config(words, tmp_path, tmp_path / "cache", more)
    runner = MultiTaskRunner(config, tmp_path / "run")
    with pytest.raises(UserError) as caught:
        runner.train()
    assert runner.step == 0
    cause = caught.value.__cause__
    assert isinstance(cause, UserError) and cause.code == "unknown-name"
    assert "s3prl:tones" in str(caught.value) and "'test'" in str(caught.value)
    config["runner"]["test_first"] = config["runner"]["test_last"] = False
    runner = MultiTaskRunner(config, tmp_path / "untested")
    runner.train()
    assert runner.step == config["runner"]["total_steps"] > 0


def test_an_error_of_the_expert_in_a_loader_is_reported(expert_folder, tmp_path):
    from tests.s3prl_compat.conftest import EXPERT

    line = "        if split not in"
    source = EXPERT.replace(line, f"        if split == 'dev':\n            [][3]\n{line}")
    folder = expert_folder(source=source)
    config = run_config([f"s3prl:{folder}"], tmp_path, tmp_path / "cache")
    runner = MultiTaskRunner(config, tmp_path / "run")
    with pytest.raises(UserError) as caught:
        runner.train()
    assert runner.step == 0
    assert "'dev'" in str(caught.value) and "IndexError" in str(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, UserError) and cause.code == "expert-failed"
    assert isinstance(cause.__cause__, IndexError)


def test_loader_workers_import_experts_with_any_start_method(expert_folder, tmp_path):
    from tests.s3prl_compat.conftest import EXPERT

    source = EXPERT.replace("batch_size=2,", "batch_size=2, num_workers=1,")
    config = run_config([f"s3prl:{expert_folder(source=source)}"], tmp_path, tmp_path / "cache")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        MultiTaskRunner(config, tmp_path / "run").train()
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert read_results(tmp_path / "run")["s3prl:tones"]["dev"] == {"seen": 5.0}


def test_checking_loaders_before_training_changes_no_random_state(expert_folder, tmp_path: Path):
    from tests.s3prl_compat.conftest import EXPERT

    line = "        if split not in"
    drawn = f"        self.drawn = torch.rand(1) * len(self.workers_seen)\n{line}"
    folder = expert_folder(source=EXPERT.replace(line, drawn))
    config = run_config([f"s3prl:{folder}"], tmp_path, tmp_path / "cache")
    runner = MultiTaskRunner(config, tmp_path / "run")
    before = torch.get_rng_state()
    check_splits(runner.config, runner.tasks)
    assert runner.tasks["s3prl:tones"].expert.workers_seen == [0]
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_metrics_are_shown_as_plain_numbers(tones, tmp_path: Path):
    MultiTaskRunner(tones, tmp_path / "run").train()
    columns = results_table(tmp_path / "run").columns
    assert list(columns[2].cells) == ["seen"]
    assert "5" in [cell for column in columns for cell in column.cells]


def test_an_expert_that_fails_on_its_settings_is_named(tiny_corpus, manifest_cache, tmp_path):
    settings, _ = fluent_commands(tiny_corpus, tmp_path)
    settings["datarc"]["file_path"] = str(tmp_path / "elsewhere")
    path = write_config(tmp_path / "fluent.yaml", settings)
    config = run_config(
        ["s3prl:fluent_commands"],
        tiny_corpus,
        manifest_cache,
        {"s3prl:fluent_commands": {"config": str(path)}},
    )
    with pytest.raises(UserError) as caught:
        MultiTaskRunner(config, tmp_path / "run")
    for name in ("'fluent_commands'", "FileNotFoundError", str(tmp_path / "elsewhere")):
        assert name in str(caught.value)


def test_an_expert_that_needs_a_gpu_is_named(expert_folder, tmp_path: Path):
    from tests.s3prl_compat.conftest import EXPERT

    line = "        logits = self.linear("
    folder = expert_folder(source=EXPERT.replace(line, f"        features[0].cuda()\n{line}"))
    config = run_config([f"s3prl:{folder}"], tmp_path, tmp_path / "cache")
    runner = MultiTaskRunner(config, tmp_path / "run")
    if torch.cuda.is_available():
        runner.train()
    else:
        with user_error("device-unavailable", where="--device") as caught:
            runner.train()
        assert str(folder) in caught.value.what


def test_the_command_line_accepts_specs_everywhere(
    expert_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    expert_folder()
    monkeypatch.chdir(tmp_path / "mine")
    settings = "s3prl:tones.downstream_expert.corpus.size=3,,specaug=null,,scheduler=null"
    words = ["-u", "hubert_tiny", "--device", "cpu", "--steps", "1", "-o", settings]
    assert main(["-d", "s3prl:./tones", *words]) == 0
    run = Path("result/downstream/hubert_tiny-s3prl:tones")
    assert read_results(run)["s3prl:tones"]["dev"]["seen"] == 3
    (run / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    again = ["-m", "evaluate", "-e", str(Path("mine") / run), "-t", "s3prl:tones:dev"]
    assert main(again) == 0
    assert read_results(Path("mine") / run)["s3prl:tones"] == {"dev": {"seen": 3.0}}
    assert "s3prl:tones" in capsys.readouterr().out
    assert main(["-d", "s3prl:nobody", *words, "--verbose"]) == 2
    shown = capsys.readouterr().err
    assert "[unknown-name]" in shown and "s3prl:nobody" in shown


def read_epoch(world: World, config: dict[str, Any], folder: Path) -> list[tuple[int, bytes]]:
    """The batches of one epoch of this rank's share of the only task."""
    runner = MultiTaskRunner(config, folder, world=world)
    (task,) = runner.tasks.values()
    reader = EpochReader(
        task.name,
        task.expert,
        "train",
        seed=1,
        epoch=1,
        shares=(world.rank,),
        num_shares=world.size,
        training=True,
    )
    return [(batch.number, b"".join(map(np.asarray, batch.wavs))) for batch in reader]


@pytest.mark.slow
@pytest.mark.parametrize("builder", [fluent_commands, speech_commands])
def test_ranks_share_one_epoch_of_an_expert_with_its_own_sampler(
    builder, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    settings, _ = builder(tiny_corpus, tmp_path)
    name = f"s3prl:{builder.__name__}"
    path = write_config(tmp_path / "expert.yaml", settings)
    config = run_config([name], tiny_corpus, manifest_cache, {name: {"config": str(path)}})
    one, two = run_ranks(2, read_epoch, config, tmp_path / "run")
    together = sorted(one + two)
    assert [number for number, _ in together] == list(range(len(together)))
    assert {number % 2 for number, _ in one} == {0}
    utterances = len(MultiTaskRunner(config, tmp_path / "alone").tasks[name].expert.train_dataset)
    size = settings["datarc"].get("train_batch_size") or settings["datarc"]["batch_size"]
    # speech_commands leaves out an incomplete last batch, fluent_commands does not.
    expected = utterances // size if builder is speech_commands else -(-utterances // size)
    assert len(together) == expected, "the whole epoch, not the half of a DistributedSampler"
    if builder is fluent_commands:
        assert len({samples for _, samples in together}) == len(together)


def test_a_study_checks_experts_of_s3prl_and_names_an_unknown_setting(
    expert_folder, tmp_path: Path
) -> None:
    plan = Plan(specs=(f"s3prl:{expert_folder()}", "ks"), scenarios=("a", "b1"))
    settings = StudySettings(plan=plan, upstream="hubert_tiny", steps=2)
    (expert,) = [run for run in plan.runs if run.tasks == ("s3prl:tones",)]
    check_runs([expert], settings)
    with user_error("unknown-key", where="optimizer.lrr"):
        check_runs([expert], replace(settings, override="optimizer.lrr=1"))
