"""Heads of other packages: their errors name them and do not affect other answers."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import s3prl_mtl
from s3prl_mtl.cli.main import main
from s3prl_mtl.config import build_config
from s3prl_mtl.errors import nearest
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.mistakes import user_error

# `quiet` has no `predict`. `moody` calls `Moody.says` for utterances of over 100 frames.
GUESTS = """
import torch
from downstream_plugins.ks import KeywordSpotting
from s3prl_mtl import Metric, TaskExpert
from s3prl_mtl.metrics import accuracy


class Quiet(TaskExpert):
    name = "quiet"
    corpus_type = KeywordSpotting.corpus_type
    metrics = (Metric("acc", "higher", "accuracy"),)

    def build_head(self):
        self.classes = self.label_list("classes")
        self.linear = torch.nn.Linear(self.upstream_dim, len(self.classes))

    def target(self, labels):
        return self.classes.index(labels["class"])

    def forward(self, split, features, targets, *, records):
        logits = self.linear(torch.stack([feature.mean(dim=0) for feature in features]))
        records["reference"] += targets
        records["hypothesis"] += logits.argmax(dim=-1).tolist()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(targets))

    def measure(self, split, records):
        return {"acc": accuracy(records["reference"], records["hypothesis"])}


class Moody(KeywordSpotting):
    says = None

    def predict(self, features, lengths_samples):
        if Moody.says is not None and any(len(feature) > 100 for feature in features):
            return Moody.says(features)
        return [{"mood": "good", "heard": len(feature)} for feature in features]
"""


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package `guest-tasks` is installed: `quiet`, `moody`, and an `sd` that is `moody`."""
    folder = tmp_path_factory.mktemp("site")
    module, metadata = folder / "guest_tasks", folder / "guest_tasks-1.0.dist-info"
    module.mkdir()
    metadata.mkdir()
    (module / "__init__.py").write_text(GUESTS)
    source = Path(sys.modules[load_task("ks").__module__].__file__ or "")
    shutil.copy(source.parent / "config.yaml", module)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guest-tasks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[s3prl_mtl.tasks]\n"
        "quiet = guest_tasks:Quiet\nmoody = guest_tasks:Moody\nsd = guest_tasks:Moody\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("guest_tasks", None)


@pytest.fixture(scope="module")
def run(
    guests: Path, tiny_corpus: Path, manifest_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of its tasks, and of ours."""
    settings = {
        "downstream": ["quiet", "moody", "guest-tasks:sd", "ks", "sv"],
        "data": str(tiny_corpus),
        "cache_dir": str(manifest_cache),
        "upstream.name": "hubert_tiny",
        "device": "cpu",
        "scheduler": None,
        "runner.total_steps": 1,
        "runner.test_first": False,
        "runner.test_last": False,
    }
    folder = tmp_path_factory.mktemp("run")
    MultiTaskRunner(build_config(flags=settings), folder).train()
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A short one, a long one, a short one."""
    paths = []
    for name, samples in (("one", 16_000), ("long", 48_000), ("two", 16_000)):
        paths.append(tmp_path / f"{name}.wav")
        noise = 0.1 * np.random.default_rng(samples).standard_normal(samples)
        soundfile.write(paths[-1], noise, 16_000)
    return paths


def raise_hard(features):
    raise KeyError("no such mood")


INVALID = [
    (raise_hard, "KeyError: 'no such mood'"),
    (lambda features: torch.zeros(len(features)), r"\bTensor\b.*\blist\b"),
    (lambda features: [{}] * (len(features) - 1), r"\b0\b.*\b1\b"),
    (lambda features: [{"mood": float("nan")} for _ in features], "JSON"),
    (lambda features: [{"mood": torch.zeros(2)} for _ in features], "JSON.*Tensor"),
    (lambda features: ["good" for _ in features], r"\bstr\b.*\bdict\b"),
]


@pytest.mark.parametrize(("says", "reason"), INVALID)
def test_a_head_that_fails_is_named_and_affects_one_file_only(
    run: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys, says, reason: str
):
    trained = s3prl_mtl.load(run, ["moody", "ks"], device="cpu")
    monkeypatch.setattr(sys.modules["guest_tasks"].Moody, "says", staticmethod(says))
    with user_error("expert-failed", where="'moody'.*guest-tasks") as caught:
        trained.predict([files[1]])
    assert re.search(reason, caught.value.what)
    assert trained.predict([files[1]], ["ks"])[0]["ks"]["class"]
    words = ["predict", str(run), "--task", "moody,ks", "--device", "cpu", *map(str, files)]
    assert main(words) == 2
    shown = capsys.readouterr()
    first, second, third = map(json.loads, shown.out.splitlines())
    assert re.search(r"\b1 of 3\b", shown.err)
    assert set(second) == {"file", "error"} and "guest-tasks" in second["error"]
    for line in (first, third):
        assert line["moody"] == {"mood": "good", "heard": 49}
        assert line["ks"]["class"]


def test_answers_are_copies_of_the_values_of_a_head(
    run: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
):
    trained = s3prl_mtl.load(run, ["moody"], device="cpu")
    one = {"moods": (1, 2)}
    monkeypatch.setattr(
        sys.modules["guest_tasks"].Moody, "says", staticmethod(lambda features: [one, one])
    )
    first, second = trained.predict([files[1], files[1]])
    assert first["moody"] == {"moods": [1, 2]}
    first["moody"]["moods"].append(3)
    assert second["moody"] == {"moods": [1, 2]} and one == {"moods": (1, 2)}


def test_a_head_without_predict_is_skipped_unless_it_is_named(
    run: Path, files: list[Path], capsys, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        trained = s3prl_mtl.load(run, device="cpu")
    (record,) = caplog.records
    name, error = record.args
    assert (name, error.code, error.where) == ("quiet", "not-supported", "guest_tasks.Quiet")
    assert trained.tasks == ["quiet", "moody", "guest-tasks:sd", "ks", "sv"]
    (answer,) = trained.predict([files[0]])
    assert list(answer) == ["moody", "guest-tasks:sd", "ks", "sv"]
    with user_error("not-supported", where="guest_tasks.Quiet"):
        trained.predict([files[0]], ["ks", "quiet"])
    assert main(["predict", str(run), "--device", "cpu", *map(str, files)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all("ks" in line and "quiet" not in line for line in lines)
    for tasks in ("ks,quiet", "quiet"):
        assert main(["predict", str(run), "--verbose", "--task", tasks, str(files[0])]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "guest_tasks.Quiet" in shown.err and "[not-supported]" in shown.err


def test_without_tasks_the_answers_are_empty(run: Path, files: list[Path]):
    assert s3prl_mtl.load(run, ["ks"], device="cpu").predict(files[:2], []) == [{}, {}]
    headless = s3prl_mtl.load(run, [], device="cpu")
    assert headless.tasks == [] and headless.predict(files[:2]) == [{}, {}]
    assert len(headless.features(files[:2])) == 2
    with user_error("file-missing", where=r"^nowhere\.wav$"):
        headless.predict(["nowhere.wav"])


def test_a_head_without_segments_writes_no_rttm(
    run: Path, files: list[Path], tmp_path: Path, capsys
):
    rttm = tmp_path / "who.rttm"
    rttm.write_text("what was there before\n")
    words = ["predict", str(run), "--verbose", "--task", "sd", "--device", "cpu"]
    assert main([*words, "--rttm", str(rttm), str(files[0])]) == 2
    shown = capsys.readouterr().err
    assert "guest-tasks:sd" in shown and "[not-supported]" in shown
    assert rttm.read_text() == "what was there before\n"
    assert list(tmp_path.glob(".*")) == []


def test_a_task_of_another_package_is_not_mistaken_for_a_misspelling(run: Path, files: list[Path]):
    trained = s3prl_mtl.load(run, ["ks"], device="cpu")
    suggestion, _, _ = nearest("ks", ["ks"]).partition("'ks'")
    for call in (
        lambda: trained.predict(files[:1], ["foo:ks"]),
        lambda: s3prl_mtl.load(run, ["foo:ks"], device="cpu"),
    ):
        with user_error("unknown-name", fix=r"\bks\b.*\bs3prl-mtl\b") as caught:
            call()
        assert suggestion and suggestion not in str(caught.value)
