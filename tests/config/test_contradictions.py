"""Settings that contradict each other, and files whose settings reach further than their tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_mtl.config import build_config
from s3prl_mtl.fileio.deferred_log import DeferredLog
from tests.mistakes import user_error

ASR = "downstream: [asr]\noptimizer: {lr: 1.0e-4}\nupstream: {freeze: true}\n"
DATA = {"data": "/corpora"}


def files(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"{number}.yaml" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize(
    "second",
    [
        "downstream: [pr]\noptimizer: {lr: 1.0e-2}\n",
        "downstream: [asr, pr]\nupstream: {freeze: false}\n",
        "downstream: pr\noptimizer: {lr: 1.0e-3}\nks: {dev_splits: [dev]}\n",
    ],
)
def test_files_of_different_runs_that_disagree_are_refused(tmp_path: Path, second: str):
    with user_error("conflicting-options", where=f"-c {tmp_path / '1.yaml'}"):
        build_config(files(tmp_path, ASR, second), {**DATA, "downstream": ["asr", "pr"]})


@pytest.mark.parametrize(
    "second",
    [
        "optimizer: {lr: 1.0e-2}\n",
        "downstream: [asr]\noptimizer: {lr: 1.0e-2}\n",
        "downstream: [pr]\noptimizer: {lr: 1.0e-4, betas: [0.9, 0.98]}\n",
    ],
)
def test_files_that_refine_or_agree_with_each_other_are_merged(tmp_path: Path, second: str):
    config = build_config(files(tmp_path, ASR, second), {**DATA, "downstream": ["asr", "pr"]})
    assert config["upstream"]["freeze"] is True
    assert config["optimizer"]["lr"] == (1e-2 if "1.0e-2" in second else 1e-4)


def test_settings_of_a_file_that_apply_to_other_tasks_are_named(tmp_path: Path):
    log = DeferredLog()
    paths = files(tmp_path, ASR)
    build_config(paths, {**DATA, "downstream": ["asr", "ks"]}, deferred=log)
    (text,) = [text for _, text in log._buffered]
    assert str(paths[0]) in text
    assert "optimizer.lr, upstream.freeze" in text
    assert "ks" in text.rpartition("to")[2]


def test_a_file_with_the_tasks_of_the_run_needs_no_remark(tmp_path: Path):
    log = DeferredLog()
    build_config(files(tmp_path, ASR), DATA, deferred=log)
    build_config(
        files(tmp_path, "optimizer: {lr: 1}"), {**DATA, "downstream": ["ks"]}, None, None, log
    )
    assert log._buffered == []


@pytest.mark.parametrize(
    ("flags", "overrides", "key"),
    [
        ({"runner.total_steps": 5}, "runner.total_steps=6", "runner.total_steps"),
        ({}, "config.optimizer.lr=1e-4,,optimizer.lr=1e-3", "optimizer.lr"),
        ({"seed": 1}, "args.seed=2", "seed"),
        ({"upstream.freeze": True}, "upstream.freeze=false", "upstream.freeze"),
        ({"downstream": ["ks", "ic"]}, "args.downstream=ks", "downstream"),
    ],
)
def test_two_values_of_one_setting_on_the_command_line_are_refused(flags, overrides, key):
    with user_error("conflicting-options", where=key):
        build_config((), {**DATA, "downstream": ["ks"], **flags}, overrides)


def test_the_same_value_twice_is_accepted():
    flags = {**DATA, "downstream": ["ks"], "runner.total_steps": 5}
    config = build_config((), flags, "runner.total_steps=5,,args.downstream=ks")
    assert config["runner"]["total_steps"] == 5


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("upstream: {freeze: true, freeze_layers: 2}", "upstream.freeze_layers"),
        (
            "upstream: {freeze: true}\noptimizer: {groups: {encoder: {lr: 1.0e-5}}}",
            "optimizer.groups.encoder",
        ),
        ("optimizer: {groups: {asr: {lr: 1.0e-5}}}", "optimizer.groups.asr"),
        ("runner: {unfreeze_after: 20, total_steps: 20}", "runner.unfreeze_after"),
    ],
)
def test_a_setting_without_effect_is_a_warning(tmp_path: Path, text: str, key: str):
    log = DeferredLog()
    build_config(files(tmp_path, text), {**DATA, "downstream": ["ks"]}, deferred=log)
    (warning,) = [text for _, text in log._buffered]
    assert key in warning


@pytest.mark.parametrize("rule", ["weights:er=2", "every:er=2", "every:2"])
def test_an_evaluation_of_some_tasks_ignores_settings_of_training(rule: str):
    settings = {"runner.sampling": rule, "optimizer.groups": {"er": {"lr": 1e-3}}}
    run = build_config(flags={**DATA, **settings, "downstream": ["ks", "er"]})
    with user_error("invalid-value", where=r"runner\.sampling"):
        build_config(base=run, flags={"downstream": ["ks"]})
    log = DeferredLog()
    config = build_config(base=run, flags={"downstream": ["ks"]}, deferred=log, trains=False)
    assert config["downstream"] == ["ks"] and not log._buffered


def test_settings_with_an_effect_are_not_reported(tmp_path: Path):
    log = DeferredLog()
    text = (
        "upstream: {freeze_layers: 2}\n"
        "optimizer: {groups: {encoder: {lr: 1.0e-5}, ks: {lr: 1.0e-3}}}\n"
        "runner: {unfreeze_after: 19, total_steps: 20}"
    )
    build_config(files(tmp_path, text), {**DATA, "downstream": ["ks"]}, deferred=log)
    assert not log._buffered
