"""Runs with a balancer from the command line, and the list of balancers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import main
from s3prl_mtl.tracking.console import OUTPUT
from s3prl_mtl.tracking.recorder import read_metrics

SETTINGS = ",,".join(
    ["device=cpu", "runner.log_step=1", "runner.save_step=1", "runner.max_keep=9", "scheduler=null"]
)


def train(corpus: Path, cache: Path, run: Path, *words: str) -> int:
    flags = ["-u", "hubert_tiny", "-c", "demo", "--data", str(corpus), "--cache_dir", str(cache)]
    settings = f"{SETTINGS},,runner.test_first=false,,runner.test_last=false"
    return main(["train", *flags, "-d", "ks,er", "-p", str(run), "-o", settings, *words])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "section", "metrics"),
    [
        (["--balancer", "uncertainty"], {"name": "uncertainty"}, {"weight_ks", "sigma_er"}),
        (["--auto_loss_weights"], {"name": "uncertainty"}, {"weight_ks", "sigma_er"}),
        (["--pcgrad"], {"name": "pcgrad", "per_parameter": True}, {"conflicting_pairs"}),
        (["--balancer", "GradVac"], {"name": "gradvac"}, {"conflicting_pairs", "weight_er"}),
    ],
)
def test_a_run_is_logged_saved_and_resumed_with_its_balancer_only(
    flags: list[str],
    section: dict[str, object],
    metrics: set[str],
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    capsys,
):
    run = tmp_path / "run"
    assert train(tiny_corpus, manifest_cache, run, "--steps", "2", *flags) == 0
    saved = checkpoints.load(run / "states-2.ckpt")
    assert saved.config["balancer"] == section and saved.training.balancer
    assert metrics <= {entry["metric"] for entry in read_metrics(run)}
    resume = ["-e", str(run), "--data", str(tiny_corpus), "--steps", "3"]
    assert main(["train", *resume, "--balancer", "sum"]) == 2
    assert "balancer.name" in capsys.readouterr().err
    assert main(["train", *resume]) == 0
    assert checkpoints.load(run / "states-3.ckpt").config["balancer"] == section
    best = ["evaluate", "-e", str(run), "--data", str(tiny_corpus), "-t", "ks:test"]
    assert main(best) == 0
    if "sigma_er" in metrics:
        learned = saved.training.balancer["log_sigma"]
        assert torch.count_nonzero(learned) == 2


def test_the_flags_of_balancers_exclude_each_other(tmp_path: Path):
    assert main(["train", "-d", "ks", "--pcgrad", "--balancer", "sum"]) == 2
    assert main(["train", "-d", "ks", "--pcgrad", "--auto_loss_weights"]) == 2
    assert main(["evaluate", "-e", str(tmp_path), "--pcgrad"]) == 2


def test_balancers_are_listed_with_their_options(capsys, install, monkeypatch):
    monkeypatch.setattr(OUTPUT, "width", 250)
    install(
        "from s3prl_mtl.balancing import Sum\n\n\nclass DownstreamExpert(Sum):\n    'Adds.'\n",
        None,
        "mine",
        "s3prl_mtl.balancers",
    )
    install("1 / 0\n", None, "theirs", "s3prl_mtl.balancers")
    assert main(["balancers"]) == 0
    shown = capsys.readouterr().out
    lines = (line for line in shown.splitlines() if "│" in line)
    rows = {r[0]: r[1:] for r in ([c.strip() for c in line.split("│")[1:-1]] for line in lines)}
    assert rows["pcgrad"][0] == "gradients" and rows["pcgrad"][2] == "per_parameter, gradients"
    assert rows["uncertainty"][0] == "losses" and rows["fixed"][2] == "TASK=WEIGHT"
    assert rows["mine"][:2] == ["losses", "mine 0.1"] and rows["mine"][3] == "Adds."
    assert rows["theirs"][3] == "broken" and "ZeroDivisionError" in shown
    assert rows["gradvac"][2] == "beta, eps, gradients" and rows["cagrad"][2].startswith(
        "c (required)"
    )
