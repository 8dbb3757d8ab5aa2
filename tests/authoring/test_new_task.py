"""`new-task` writes a complete package that trains, or nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from s3prl_mtl.authoring import check_task, new_task
from s3prl_mtl.authoring.new_task import KINDS
from s3prl_mtl.cli.main import main
from tests.mistakes import user_error

ROOT = Path(__file__).parents[2]


def test_the_package_is_complete(tmp_path: Path):
    written = new_task("spoken_words", tmp_path / "words")
    names = {str(path.relative_to(tmp_path / "words")) for path in written}
    assert names == {
        "README.md",
        "pyproject.toml",
        "spoken_words_task/__init__.py",
        "spoken_words_task/config.yaml",
        "spoken_words_task/corpus.py",
        "tests/test_spoken_words_task.py",
    }
    assert not [
        path for path in written if "$name" in path.read_text() or "$module" in path.read_text()
    ]
    project = tomllib.loads((tmp_path / "words" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "spoken-words-task"
    assert project["project"]["entry-points"]["s3prl_mtl.tasks"] == {
        "spoken_words": "spoken_words_task:SpokenWordsTask"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_passes_ruff(kind: str, tmp_path: Path):
    new_task("spoken_words", tmp_path / "task", kind)
    for words in (
        ["check", "--config", str(ROOT / "pyproject.toml")],
        ["format", "--check", "--config", str(ROOT / "pyproject.toml")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "."],
            cwd=tmp_path / "task",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["my-task", "1task", "", "a b", "Words", "class", "_words", "a__b", "wörter"]
)
def test_an_invalid_name_is_refused(name: str, tmp_path: Path):
    with user_error("invalid-name", where="NAME"):
        new_task(name, tmp_path / "task")
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("name", ["runner", "data", "all", "optimizer"])
def test_a_reserved_name_is_refused(name: str, tmp_path: Path):
    with user_error("invalid-name", where="NAME"):
        new_task(name, tmp_path / "task")


def test_a_name_that_is_taken_is_refused_with_its_package(tmp_path: Path):
    with user_error("duplicate-name", where=r"s3prl-mtl 0"):
        new_task("ks", tmp_path / "task")


def test_existing_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with user_error("file-exists", where="DIR"):
        new_task("words", tmp_path)
    with user_error("file-exists", where="DIR"):
        new_task("words", tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_prints_the_next_commands(tmp_path: Path, capsys):
    assert main(["new-task", "words", str(tmp_path / "words")]) == 0
    shown = capsys.readouterr().out
    assert "s3prl-mtl check-task words --data corpora" in shown
    assert '-d words --data corpora --steps 20 -o "scheduler=null"' in shown
    assert main(["new-task", "words", str(tmp_path / "words")]) == 2


def test_the_folder_in_the_printed_command_is_quoted(tmp_path: Path, capsys):
    folder = tmp_path / "my own" / "words"
    assert main(["new-task", "words", str(folder)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "pip install" in line)
    assert shlex.split(line) == ["pip", "install", "-e", str(folder)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract_and_trains_a_step(
    kind: str,
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    new_task(f"my_{kind}", tmp_path, kind)
    metadata = tmp_path / "my-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my\nVersion: 0.1\n")
    points = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, expert),) = points["s3prl_mtl.tasks"].items()
    (metadata / "entry_points.txt").write_text(f"[s3prl_mtl.tasks]\n{name} = {expert}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = f"cache_dir={manifest_cache},,{name}.downstream_expert.datarc.num_workers=0"
    # The slow test checks all.
    lines = [2, 3, 9, 11, 18, 19, 20]
    findings = check_task(name, data=tiny_corpus, overrides=settings, batches=1, lines=lines)
    assert [str(finding) for finding in findings if finding.result != "holds"] == []
    flags = ["-u", "hubert_tiny", "-d", name, "--data", str(tiny_corpus), "--steps", "1"]
    settings += ",,runner.test_last=false,,device=cpu"
    assert main(["train", *flags, "-p", str(tmp_path / "run"), "-o", settings]) == 0
    assert (tmp_path / "run" / "states-1.ckpt").is_file()


def test_an_unknown_kind_is_refused(tmp_path: Path):
    with user_error("invalid-value", where="--kind", fix="'frames'"):
        new_task("words", tmp_path / "task", "frame")
    assert main(["new-task", "words", str(tmp_path / "task"), "--kind", "frame"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "frames"])  # One for each corpus template.
def test_the_package_installs_passes_its_test_and_trains(
    kind: str, tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
):
    new_task("words", tmp_path / "words", kind)
    site = tmp_path / "site"
    words = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", str(site), str(tmp_path / "words")],
        check=True,
        capture_output=True,
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}:{ROOT}",
        "S3PRL_MTL_CACHE": str(manifest_cache),
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "words-task" in run("-m", "s3prl_mtl", "tasks")
    assert " passed" in run("-m", "pytest", "-q", str(tmp_path / "words" / "tests"))
    settings = "words.downstream_expert.datarc.num_workers=0"
    flags = ["-u", "hubert_tiny", "-d", "words,ks", "--data", str(tiny_corpus), "-p", "run"]
    shown = run(str(ROOT / "run_mtl.py"), *flags, "--steps", "2", "-o", settings)
    assert "words" in shown and (tmp_path / "run" / "states-2.ckpt").is_file()
