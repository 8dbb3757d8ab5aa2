"""`check-corpus` and every run refuse a corpus that contradicts itself."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from downstream_plugins.ic.corpus import FluentSpeechCommands
from s3prl_mtl.api import check_corpus
from s3prl_mtl.cli.main import main
from s3prl_mtl.data import Utterance
from s3prl_mtl.training.preflight import corpus_report
from s3prl_mtl.training.runner import MultiTaskRunner
from tests.authoring.test_conformance import COMPLETE, CONFIG
from tests.distributed.test_updates import make_config
from tests.mistakes import user_error

DEMO = Path(__file__).parents[2] / "run_scripts" / "demo.yaml"


@pytest.fixture
def commands(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the folder of Fluent Speech Commands, in a folder of corpora."""
    source = tiny_corpus / "fluent_speech_commands_dataset"
    return Path(shutil.copytree(source, tmp_path / "data" / source.name))


def check(task: str, data: Path, tmp_path: Path, *flags: str) -> int:
    cache = str(tmp_path / "cache")
    words = ["check-corpus", task, "--data", str(data), "--cache_dir", cache, *flags]
    try:
        return main(words)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_sizes_are_listed_beside_the_published_ones(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert check("ks", tiny_corpus, tmp_path) == 0
    shown = capsys.readouterr().out
    (train,) = (line for line in shown.splitlines() if "train" in line)
    cells = [cell.strip() for cell in train.split("│")[1:-1]]
    assert cells[1] == "38" and cells[4] == "12" and cells[5].startswith("51094")


def test_mistyped_task_is_an_error_of_the_argument():
    with user_error("unknown-name", where="TASK kss"):
        check_corpus("kss")


def test_dev_that_equals_train_is_refused(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(commands / "data" / "train_data.csv", commands / "data" / "valid_data.csv")
    assert check("ic", commands.parent, tmp_path) == 1
    shown = capsys.readouterr().out
    assert "error: 36 of 36" in shown.replace("\n", " ")
    assert "1 errors" in shown


def test_a_run_is_refused_before_its_first_step(commands: Path, tmp_path: Path):
    shutil.copy(commands / "data" / "train_data.csv", commands / "data" / "test_data.csv")
    config = make_config(commands.parent, tmp_path / "cache", "ic")
    runner = MultiTaskRunner(config, tmp_path / "run")
    with user_error("corpus-overlap", where=r"\.wav$"):
        runner.train()
    report = corpus_report(runner.tasks["ic"])
    assert report is not None
    (mistake,) = report.mistakes()
    assert "36 of 36" in mistake.what


def test_the_sizes_are_logged_once_for_each_split_of_a_run(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    words = ["-u", "hubert_tiny", "-d", "ks", "-c", str(DEMO), "--data", str(tiny_corpus)]
    words += ["--cache_dir", str(manifest_cache), "-p", str(tmp_path / "run"), "--steps", "1"]
    assert main([*words, "-o", "runner.test_first=false,,runner.test_last=false"]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    for split, count in (("train", 38), ("dev", 22), ("test", 13)):
        assert log.count(f"ks {split}: {count} utterances, 0.0 h, 12 classes (published: ") == 1


def test_a_task_that_reads_its_data_itself_cannot_be_checked(install, tmp_path: Path):
    install(COMPLETE, CONFIG)
    assert check("tones", tmp_path, tmp_path) == 2


def test_one_task_is_checked_at_a_time(tmp_path: Path):
    assert check("ks,er", tmp_path, tmp_path) == 2


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits of Fluent Speech Commands that are listed."""
    splits = []
    real = FluentSpeechCommands.utterances

    def counted(corpus: FluentSpeechCommands, split: str) -> list[Utterance]:
        splits.append(split)
        return real(corpus, split)

    monkeypatch.setattr(FluentSpeechCommands, "utterances", counted)
    return splits


def backdate(*roots: Path) -> None:
    """Set times to an hour ago: later changes are not relied on."""
    earlier = time.time() - 3600
    for root in roots:
        for path in (root, *root.rglob("*")):
            os.utime(path, (earlier, earlier))


def test_an_unchanged_corpus_is_listed_again_only_if_asked(
    commands: Path, tmp_path: Path, listings: list[str]
):
    backdate(commands.parent)
    for flags, expected in (((), 3), ((), 0), (("--rescan",), 3), ((), 0)):
        listings.clear()
        assert check("ic", commands.parent, tmp_path, *flags) == 0
        assert len(set(listings)) == expected


def test_a_run_lists_its_corpora_again_if_asked(
    commands: Path, tmp_path: Path, listings: list[str]
):
    backdate(commands.parent)
    words = ["-u", "hubert_tiny", "-d", "ic", "-c", str(DEMO), "--data", str(commands.parent)]
    words += ["--cache_dir", str(tmp_path / "cache"), "-o", "runner.test_first=false"]
    for run, flags, expected in (("a", (), 3), ("b", (), 0), ("c", ("--rescan",), 3)):
        listings.clear()
        assert main([*words, "--dry-run", "-p", str(tmp_path / run), *flags]) == 0
        assert len(set(listings)) == expected
