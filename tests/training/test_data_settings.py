"""Settings of the training data: the tasks of a step, a share of the data, changed waveforms."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from s3prl_mtl import api
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config, resolve
from s3prl_mtl.data.task_sampling import task_sampling
from s3prl_mtl.distributed.world import World
from s3prl_mtl.registry.plugins import discover_tasks
from s3prl_mtl.training.build import build_expert
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.comparison import assert_same
from tests.distributed.ranks import run_ranks
from tests.distributed.test_updates import make_config, weights_of
from tests.mistakes import user_error
from tests.training_summaries import summaries

TASKS = ["ks", "er", "ic"]


@pytest.fixture
def make(tiny_corpus: Path, manifest_cache: Path) -> Any:
    def made(tasks: str = "ks,er,ic", **flags: Any) -> dict[str, Any]:
        return make_config(tiny_corpus, manifest_cache, tasks, **flags)

    return made


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    folder = tmp_path / "noise"
    folder.mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 40_000)
    soundfile.write(folder / "1.wav", samples, 16_000)
    return folder


# ------------------------------------------------------------------------- tasks of a step


def test_a_part_of_the_tasks_of_a_sampled_run_is_evaluated(make: Any, tmp_path: Path) -> None:
    steps = {"runner__total_steps": 2, "runner__test_last": False}
    config = make("ks,er", runner__sampling="every:er=2", balancer="fixed:er=2", **steps)
    MultiTaskRunner(config, tmp_path).train()
    for words in (["-t", "ks:test"], ["--best", "-t", "ks:dev"]):
        assert main(["evaluate", "-e", str(tmp_path), *words]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["ks"].keys() >= {"dev", "test"}
    best = tmp_path / "ks" / "dev-best.ckpt"
    with user_error("not-supported", where=str(best)):
        api.affinity(best, steps=1)


@pytest.mark.parametrize("rule", ["uniform", "proportional", "every:ks=2", "every:3"])
def test_a_step_has_the_tasks_of_the_rule(rule: str, make: Any, tmp_path: Path) -> None:
    runner = MultiTaskRunner(make(runner__sampling=rule), tmp_path)
    sizes = {name: task.training_utterances() for name, task in runner.tasks.items()}
    tasks_of = task_sampling(rule, TASKS, sizes, runner.config.seed)
    drawn = dict.fromkeys(TASKS, 0)
    for step in range(1, 7):
        before = weights_of(runner)
        losses = runner.train_step().losses
        assert list(losses) == tasks_of(step)
        for name, weights in weights_of(runner).items():
            task = name.partition("/")[0]
            if task in TASKS:
                assert torch.equal(weights, before[name]) != (task in losses)
        for task in losses:
            drawn[task] += 1
    rounds = {
        name: task.stream.epoch * task.stream.epoch_batches + task.stream.round
        for name, task in runner.tasks.items()
    }
    assert rounds == drawn


def test_sampled_runs_resume_bit_for_bit_with_any_number_of_workers(
    make: Any, tmp_path: Path
) -> None:
    settings = {
        "runner__sampling": "temperature:2",
        "runner__total_steps": 8,
        "runner__save_step": 4,
        "runner__gradient_accumulate_steps": 2,
        "runner__test_last": False,
    }
    config = make(**settings, runner__num_workers=0)
    MultiTaskRunner(config, tmp_path / "whole").train()
    half = checkpoints.load(tmp_path / "whole" / "states-4.ckpt")
    with_workers = make(**settings, runner__num_workers=2)
    MultiTaskRunner(with_workers, tmp_path / "resumed", resume=half).train()
    whole, resumed = (
        replace(checkpoints.load(tmp_path / run / "states-8.ckpt"), config={})
        for run in ("whole", "resumed")
    )
    assert_same(whole, resumed)


def steps_of_ranks(world: World, config: dict[str, Any], folder: Path) -> list[Any]:
    runner = MultiTaskRunner(config, folder, world=world)
    losses = [runner.train_step().losses for _ in range(5)]
    encoder = torch.cat([p.detach().flatten() for p in runner.upstream.parameters()])
    return [losses, encoder.double().sum().item()]


@pytest.mark.parametrize("placement", [None, pytest.param("0:ks,ic;1:er", marks=pytest.mark.slow)])
def test_ranks_take_the_same_tasks(placement: str | None, make: Any, tmp_path: Path) -> None:
    config = make(runner__sampling="proportional")
    if placement:
        config["distributed"] = {"parallel": "task", "placement": placement}
    first, second = run_ranks(2, steps_of_ranks, config, tmp_path)
    assert first == second
    assert len({task for losses in first[0] for task in losses}) > 1
    assert all(len(losses) == 1 for losses in first[0])


def test_rules_are_checked_before_the_run_starts(make: Any) -> None:
    with user_error("invalid-value", where=r"runner\.sampling"):
        make(runner__sampling="weights:asr=2")
    with user_error("conflicting-options", where=r"runner\.log_conflicts"):
        make(runner__sampling="uniform", runner__log_conflicts=2)


# ------------------------------------------------------------------------ share of the data


def trained_ids(config: dict[str, Any], folder: Path) -> list[str]:
    """The utterances on which the task ks of a config is trained."""
    settings = resolve(config)
    expert = build_expert(
        discover_tasks()["ks"].load(), settings, "ks", folder, upstream_dim=96, upstream_rate=320
    )
    expert.fraction = settings.tasks["ks"].fraction
    return list(expert.batch_source("train").cuts.ids())


def test_a_fraction_is_the_same_whatever_else_is_set(make: Any, tmp_path: Path) -> None:
    whole = trained_ids(make(), tmp_path)
    some = trained_ids(make(ks__fraction=0.5), tmp_path)
    assert len(some) == round(0.5 * len(whole))
    assert some == [name for name in whole if name in some]
    key = "ks__downstream_expert__datarc__train_batch_size"
    assert trained_ids(make("er,ks", ks__fraction=0.5, **{key: 1}), tmp_path) == some
    assert set(trained_ids(make(ks__fraction=0.2), tmp_path)) < set(some)
    assert trained_ids(make(ks__fraction=0.5, seed=5), tmp_path) != some
    assert len(trained_ids(make(ks__fraction=0.001), tmp_path)) == 1


def test_only_the_training_data_and_no_labels_are_left_out(make: Any, tmp_path: Path) -> None:
    runners = [MultiTaskRunner(make("ks", **f), tmp_path) for f in ({}, {"ks__fraction": 0.1})]
    whole, some = (runner.tasks["ks"].expert for runner in runners)
    assert whole.labels == some.labels
    assert len(some.batch_source("dev").cuts) == len(whole.batch_source("dev").cuts)
    assert whole.utterances("train") == some.utterances("train")


def test_a_run_resumes_with_the_same_fraction_only(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    words = ["train", "-u", "hubert_tiny", "-d", "ks", "--data", str(tiny_corpus)]
    words += ["--cache_dir", str(manifest_cache), "-p", str(tmp_path / "run")]
    settings = ["-o", "runner.test_last=false,,device=cpu"]
    assert main([*words, "--steps", "1", "--fraction", "ks=0.5", *settings]) == 0
    again = ["train", "-e", str(tmp_path / "run"), "--steps", "2"]
    assert main([*again, "--fraction", "ks=0.6"]) == 2
    assert main(again) == 0
    assert (tmp_path / "run" / "states-2.ckpt").is_file()


# ------------------------------------------------------------------------ changed waveforms


def waveforms(config: dict[str, Any], folder: Path, split: str, task: str = "sid") -> Any:
    expert = MultiTaskRunner(config, folder).tasks[task].expert
    wavs, *_ = next(iter(expert.get_dataloader(split)))
    return wavs


def test_noise_is_added_to_training_batches_only(make: Any, noise: Path, tmp_path: Path) -> None:
    settings = {"perturb__noise": str(noise), "perturb__snr": [10.0, 10.0]}
    clean, noisy = make("sid"), make("sid", **settings)
    for before, after in zip(
        waveforms(clean, tmp_path, "train"), waveforms(noisy, tmp_path, "train"), strict=True
    ):
        # Random crops are the same. Noise is added before.
        assert len(before) == len(after)
        ratio = before.square().mean() / (after - before).square().mean()
        assert 5 < 10 * ratio.log10() < 15
    for before, after in zip(
        waveforms(clean, tmp_path, "dev"), waveforms(noisy, tmp_path, "dev"), strict=True
    ):
        assert torch.equal(before, after)


def test_noise_of_an_evaluation_leaves_training_alone(
    make: Any, noise: Path, tmp_path: Path
) -> None:
    noisy = make("sid", perturb__noise=str(noise), perturb__splits="evaluation")
    for split, is_changed in (("train", False), ("dev", True), ("test", True)):
        pairs = zip(
            waveforms(make("sid"), tmp_path, split), waveforms(noisy, tmp_path, split), strict=True
        )
        assert all(torch.equal(*pair) != is_changed for pair in pairs)
    assert all(
        torch.equal(*pair)
        for pair in zip(*(waveforms(noisy, tmp_path, "test") for _ in range(2)), strict=True)
    )


def test_the_speed_of_timed_labels_is_not_changed(make: Any, tmp_path: Path) -> None:
    with user_error("not-supported", where=r"perturb\.speed"):
        MultiTaskRunner(make("sd", perturb__speed=[0.9, 1.1]), tmp_path)


def test_a_mistake_that_concerns_all_tasks_is_reported_once(
    make: Any, noise: Path, tmp_path: Path
) -> None:
    with user_error("invalid-value", where=r"perturb\.snr"):
        MultiTaskRunner(make(perturb__noise=str(noise), perturb__snr=[20.0, 5.0]), tmp_path)


def test_robustness_of_a_run_is_measured_beside_its_results(
    tiny_corpus: Path, manifest_cache: Path, noise: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "noisy"
    words = ["-u", "hubert_tiny", "-d", "ks", "--data", str(tiny_corpus), "-p", str(run)]
    settings = ["-o", "device=cpu", "--cache_dir", str(manifest_cache)]
    assert main(["train", *words, "--steps", "1", "--speed", "0.9,1.1", *settings]) == 0
    results = (run / "results.json").read_text()
    evaluate = ["evaluate", "-e", str(run), "--noise", f"{noise}:snr=0-5"]
    assert main(evaluate) == 2
    assert main([*evaluate, "-p", str(other)]) == 0
    assert (run / "results.json").read_text() == results
    assert json.loads((other / "results.json").read_text()).keys() == json.loads(results).keys()
    config = build_config([str(run / "config.yaml")], {"data": str(tiny_corpus)})
    assert config["perturb"]["speed"] == [0.9, 1.1] and config["perturb"]["noise"] is None


def test_the_log_says_how_the_data_differ(make: Any, noise: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    plain = {"runner__total_steps": 1, "runner__test_last": False}
    MultiTaskRunner(make(**plain), tmp_path / "plain").train()
    (as_it_is,) = summaries(caplog)
    caplog.clear()
    settings = {"runner__sampling": "every:3", "ks__fraction": 0.25, "perturb__noise": str(noise)}
    MultiTaskRunner(make(**plain, **settings), tmp_path / "other").train()
    (changed,) = summaries(caplog)
    # Nothing else is added, and nothing of it is said of the plain run.
    sampling, share, noisy = changed[len(as_it_is) :]
    assert "every:3" in sampling and re.search(r"\b0\.25\b.*\bks\b", share)
    assert re.search(rf"{re.escape(str(noise))}\b.*\b5\b.*\b20 dB", noisy)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--fraction", "ks"], "--fraction"),
        (["--fraction", "ks=much"], "--fraction"),
        (["--fraction", "=0.5"], "--fraction"),
        (["--fraction", "ks=0.5,ks=0.6"], "--fraction"),
        (["--fraction", "ks=nan"], r"ks\.fraction"),
        (["--fraction", "ks=1.5"], r"ks\.fraction"),
        (["--fraction", "sk=0.5"], r"sk"),
        (["--noise", "DIR:snr=loud"], "--noise"),
        (["--noise", "DIR:snr=5-"], "--noise"),
        (["--noise", "DIR:srn=5-20"], "--noise DIR:srn=5-20"),
        (["--noise", "nowhere"], "nowhere"),
        (["--speed", "fast"], "--speed"),
        (["--speed", "9"], r"perturb\.speed"),
        (["--sampling", "weights:sk=1"], r"runner\.sampling"),
        (["--sampling", "uniform", "--balancer", "pcgrad"], r"balancer and runner\.sampling"),
    ],
)
def test_flags_that_cannot_be_followed_are_refused(
    words: list[str], where: str, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, capsys
) -> None:
    command = ["train", "-u", "hubert_tiny", "-d", "ks,er", "--data", str(tiny_corpus), "--dry-run"]
    command += ["--cache_dir", str(manifest_cache), "-p", str(tmp_path / "run")]
    assert main([*command, *words]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert where.replace("\\", "") in shown
