"""`-i` takes runs, folders of runs, best checkpoints, heads of s3prl, and mixtures of them."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.config import build_config
from s3prl_mtl.training.runner import MultiTaskRunner
from s3prl_mtl.training.summary import Source
from s3prl_mtl.training.weight_files import read_weights, weight_files
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error

VALUES = {"ks": 0.25, "er": 0.5, "sid": 0.75}
"""What the bias of each donated head is filled with; negative in best checkpoints."""


@pytest.fixture(scope="module")
def make(tiny_corpus: Path, manifest_cache: Path):
    def _make(tasks: str, *paths: Path, **flags: Any) -> dict[str, Any]:
        init = [str(path) for path in paths] or None
        return make_config(tiny_corpus, manifest_cache, tasks, init_ckpt=init, seed=3, **flags)

    return _make


@pytest.fixture(scope="module")
def donors(make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `ks-run`, `er-run` and `sid-run` of one task each, with the encoder that they began
    with: the first has a best checkpoint, the last has another encoder."""
    folder = tmp_path_factory.mktemp("donors")
    for task, value in VALUES.items():
        runner = MultiTaskRunner(make(task), folder / f"{task}-run")
        expert = runner.tasks[task].expert
        expert.projector.bias.data.fill_(-value)
        runner.run.step = 1
        if task == "ks":
            checkpoints.save(runner.state(), runner.folder / "ks" / "dev-best.ckpt")
        expert.projector.bias.data.fill_(value)
        if task == "sid":
            next(runner.upstream.parameters()).data.add_(1)
        runner.run.step = 2
        runner.save()
        (runner.folder / "config.yaml").write_text(f"downstream: [{task}]\n")
    return folder


def biases(runner: MultiTaskRunner) -> dict[str, float]:
    """The donated value of each head; heads of random weights have different ones."""
    values = {n: task.expert.projector.bias.unique() for n, task in runner.tasks.items()}
    return {name: value.item() for name, value in values.items() if len(value) == 1}


def s3prl_head(donors: Path, task: str, path: Path, **entries: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = dict(checkpoints.load(donors / f"{task}-run" / "states-2.ckpt").tasks[task].head)
    torch.save({"Downstream": head, **entries}, path)


def test_a_folder_of_runs_gives_each_task_its_best_or_last_checkpoint(make, donors, tmp_path):
    runner = MultiTaskRunner(make("ks,er,ic", donors), tmp_path)
    assert biases(runner) == {"ks": -0.25, "er": 0.5}
    last = Source("run", 2, donors / "er-run" / "states-2.ckpt")
    assert runner._sources == {
        "ks": Source("best checkpoint", 1, donors / "ks-run" / "ks" / "dev-best.ckpt"),
        "er": last,
        # Both have the same ones; the run of sid, which is no task here, has others.
        "encoder": last,
        "featurizer": last,
    }


def test_a_run_gives_its_last_checkpoint(donors):
    run = donors / "ks-run"
    assert weight_files(run, "hubert_tiny", {"ks"}) == [run / "states-2.ckpt"]


def test_different_encoders_are_not_chosen_from(make, donors, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        runner = MultiTaskRunner(make("er,sid", donors), tmp_path)
    assert biases(runner) == {"er": 0.5, "sid": 0.75}
    assert "encoder" not in runner._sources and "featurizer" in runner._sources
    (message,) = (r.getMessage() for r in caplog.records if "encoder" in r.getMessage())
    assert "er-run" in message and "sid-run" in message
    named = make("er,sid", donors, init_upstream_ckpt=str(donors / "sid-run"))
    chosen = MultiTaskRunner(named, tmp_path / "named")
    assert chosen._sources["encoder"].file == donors / "sid-run" / "states-2.ckpt"


def test_best_checkpoints_by_themselves_start_a_run(donors, tmp_path):
    best = donors / "ks-run" / "ks"
    shutil.copytree(best, tmp_path / "copied" / "ks")
    for path in (best, best / "dev-best.ckpt", tmp_path / "copied", tmp_path / "copied" / "ks"):
        (file,) = weight_files(path, "hubert_tiny", {"ks"})
        assert file.name == "dev-best.ckpt"
        weights = read_weights(file, {"ks": None, "er": None})
        assert set(weights.heads["ks"]["projector.bias"].tolist()) == {-0.25}
        assert set(weights.heads) == {"ks"}


def test_a_mixture_starts_each_task_from_its_own_file(make, donors, tmp_path):
    s3prl_head(donors, "sid", tmp_path / "heads" / "sid" / "hubert_tiny_sid.ckpt", Step=7)
    s3prl_head(donors, "ks", tmp_path / "heads" / "ks" / "fbank_ks.ckpt")  # of another encoder
    paths = (donors / "ks-run" / "ks", donors / "er-run", tmp_path / "heads")
    runner = MultiTaskRunner(make("ks,er,sid", *paths), tmp_path / "run")
    assert biases(runner) == {"ks": -0.25, "er": 0.5, "sid": 0.75}
    file = tmp_path / "heads" / "sid" / "hubert_tiny_sid.ckpt"
    assert runner._sources["sid"] == Source("head of s3prl", 7, file)


@pytest.mark.parametrize("name", ["states-7.ckpt", "dev-best.ckpt"])
def test_a_run_of_s3prl_shows_its_task(name: str, donors, tmp_path):
    arguments = argparse.Namespace(upstream="hubert_tiny", downstream="emotion")
    path = tmp_path / "s3prl-run" / name
    s3prl_head(donors, "er", path, Step=7, Args=arguments, Config={"downstream_expert": {}})
    for given in (path, path.parent, tmp_path):
        (file,) = weight_files(given, "hubert_tiny", {"er"})
        weights = read_weights(file, {"ks": None, "er": None})
        assert weights.source == Source("head of s3prl", 7, path)
        assert set(weights.heads["er"]["projector.bias"].tolist()) == {0.5}
        assert set(weights.heads) == {"er"}


def test_a_head_of_an_unknown_task_is_refused(donors, tmp_path):
    s3prl_head(donors, "er", tmp_path / "head.ckpt")
    with user_error("checkpoint-format", where=r"-i .*head\.ckpt"):
        read_weights(tmp_path / "head.ckpt", {"er": None})


def test_two_sources_of_one_task_are_an_error_that_names_both(make, donors, tmp_path):
    s3prl_head(donors, "ks", tmp_path / "hubert_tiny_ks.ckpt")
    with user_error("ambiguous-name", where="-i") as caught:
        MultiTaskRunner(make("er,ks", donors, tmp_path / "hubert_tiny_ks.ckpt"), tmp_path / "run")
    for name in ("hubert_tiny_ks.ckpt", "dev-best.ckpt", "ks"):
        assert name in caught.value.what


@pytest.mark.parametrize("name", ["empty", "donors", "nowhere"])
def test_a_folder_without_a_head_of_the_run_is_refused(name: str, donors, tmp_path):
    (tmp_path / "empty").mkdir()
    path = donors if name == "donors" else tmp_path / name
    with user_error("checkpoint-missing", where=f"-i {path}"):
        weight_files(path, "hubert_tiny", {"ic"})


def test_one_path_and_several_are_kept_in_the_config(make, tmp_path: Path):
    config = make("ks", Path("a"), Path("b"))
    assert config["init_ckpt"] == [str(Path(path).absolute()) for path in "ab"]
    # Configs of earlier versions have a single path.
    earlier = build_config(base={**config, "init_ckpt": "c"}, overrides="runner.max_keep=3")
    assert earlier["init_ckpt"] == [str(Path("c").absolute())]


def test_heads_only_leaves_encoder_and_layer_weights_alone(
    make, donors: Path, tmp_path: Path
) -> None:
    # The encoder of the run of sid is another one; hidden states are selected otherwise here.
    plain = MultiTaskRunner(make("sid"), tmp_path / "plain")
    flags = {"init_heads_only": True, "upstream.feature_selection": "layer_results"}
    runner = MultiTaskRunner(make("sid", donors / "sid-run", **flags), tmp_path / "heads")
    assert biases(runner) == {"sid": 0.75}
    before, after = plain.upstream.state_dict(), runner.upstream.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(runner.featurizer.weights) == len(plain.featurizer.weights) - 1
