"""The command line as a user types it: exit codes, output, files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from filelock import FileLock

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.cli.main import command_parser, main
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.run_dir import read_finished
from s3prl_mtl.training.step import TrainingStep

ROOT = Path(__file__).parents[2]
SMALL_HEADS = ROOT / "run_scripts" / "demo.yaml"


class Ended(NamedTuple):
    """A command that ended: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_mtl(
    tiny_corpus: Path,
    manifest_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Run a command line in a folder of its own, with the tiny corpus as $SUPERB_DATA."""

    def _run_mtl(*words: str, **variables: str) -> Ended:
        added = {
            "SUPERB_DATA": str(tiny_corpus),
            "S3PRL_MTL_CACHE": str(manifest_cache),
            "COLUMNS": "160",
        }
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in {**added, **variables}.items():
                patch.setenv(name, value)
            try:
                code = main(list(words))
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    return _run_mtl


def code_shown(ended: Ended) -> str:
    """The code of the error, which `--verbose` shows."""
    (code,) = re.findall(r" \[([a-z-]+)\]$", ended.stderr, flags=re.MULTILINE)
    return str(code)


def shown(ended: Ended) -> tuple[str, re.RegexFlag]:
    """The messages of a command, to be searched by line."""
    return ended.stderr, re.MULTILINE


def environment(corpus: Path, cache: Path, **variables: str) -> dict[str, str]:
    added = {"SUPERB_DATA": str(corpus), "S3PRL_MTL_CACHE": str(cache), "COLUMNS": "120"}
    return {**os.environ, **added, **variables}


@pytest.mark.parametrize(
    "program", [[str(ROOT / "run_mtl.py")], ["-m", "s3prl_mtl"], ["-m", "s3prl_mtl", "train"]]
)
def test_every_entry_point_reaches_the_command_line(program: list[str], tmp_path: Path):
    words = [*program, "-u", "hubert_tiny", "--no_such_flag"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "--no_such_flag" in done.stderr


def test_a_tilde_is_the_home_folder_in_every_path(
    run_mtl, tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    home.mkdir()
    (home / "data").symlink_to(tiny_corpus)
    shutil.copy(SMALL_HEADS, home / "small.yaml")
    monkeypatch.setenv("HOME", str(home))
    words = ["-u", "hubert_tiny", "-d", "ks", "-c", "~/small.yaml", "--cache_dir", "~/cache"]
    paths = ["-p", "~/run", "--data=~/data"]
    trained = run_mtl(*words, *paths, "--steps", "1", SUPERB_DATA="/nowhere")
    assert trained.returncode == 0, trained.stderr
    assert (home / "run" / "states-1.ckpt").is_file() and (home / "cache").is_dir()
    for more in (
        ["-m", "evaluate", "-e", "~/run", "-t", "ks:dev"],
        ["results", "~/run"],
        ["export", "~/run", "--format", "fairseq", "-o", "~/encoder.pt"],
        [*words, "-p", "~/other", "-i", "~/run", "-o", "args.data=~/data", "--dry-run"],
        [*words, "-p", "~/third", "-k", "~/encoder.pt", "--data=~/data", "--dry-run"],
    ):
        ended = run_mtl(*more, SUPERB_DATA="/nowhere")
        assert ended.returncode == 0, (more, ended.stderr)
    assert (home / "encoder.pt").is_file()
    assert not list(tmp_path.rglob("~*"))


def test_a_split_that_cannot_be_scored_ends_with_an_error_below_the_table(
    run_mtl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def undefined(expert, split, records):
        if split == "train":
            return {}
        raise UserError("No labels.", where="labels.txt", code="undefined-metric")

    monkeypatch.setattr(
        "downstream_plugins.er.EmotionRecognition.measure", undefined, raising=False
    )
    words = ["-u", "hubert_tiny", "-d", "ks,er", "-c", str(SMALL_HEADS), "-n", "first"]
    folder = tmp_path / "result" / "downstream" / "first"
    trained = run_mtl(*words, "--steps", "1", "--verbose")
    evaluated = run_mtl("-m", "evaluate", "-e", str(folder), "-t", "er:test,ks:dev", "--verbose")
    for ended in (trained, evaluated):
        assert ended.returncode == 2
        assert "er" in ended.stdout and "accuracy" in ended.stdout, "the table comes first"
    assert code_shown(trained) == "several", "dev and test"
    assert code_shown(evaluated) == "undefined-metric"
    assert (folder / "states-1.ckpt").is_file()


def test_train_evaluate_and_results(run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-d", "ks,asr", "-c", str(SMALL_HEADS), "-n", "first"]
    trained = run_mtl(*words, "--steps", "3", "-o", "config.optimizer.lr=1e-4,,args.seed=1")
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "result" / "downstream" / "first"
    assert "WER" in trained.stdout and "accuracy" in trained.stdout
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "results.json",
        "states-3.ckpt",
    }
    assert any(path.name.startswith("events.out.tfevents") for path in folder.iterdir())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["seed"] == 1
    assert config["optimizer"]["lr"] == pytest.approx(1e-4)

    for targets in ("asr:test-other", "asr:test-clean,ks:test"):
        evaluated = run_mtl("-m", "evaluate", "-e", str(folder), "-t", targets)
        assert evaluated.returncode == 0, evaluated.stderr
        assert ("accuracy" in evaluated.stdout) == ("ks:test" in targets)
        assert "states-3" in evaluated.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["_source"]["asr"]["test-other"] == {"step": 3, "checkpoint": "states-3.ckpt"}

    best = run_mtl("-m", "evaluate", "-e", str(folder), "--best")
    assert best.returncode == 0, best.stderr
    sources = json.loads((folder / "results.json").read_text())["_source"]
    assert sources["asr"]["test-clean"]["checkpoint"] == "asr/dev-clean-best.ckpt"
    assert sources["ks"]["test"]["checkpoint"] == "ks/dev-best.ckpt"
    assert "WER" in best.stdout and "accuracy" in best.stdout and "test-other" not in best.stdout
    one = run_mtl("evaluate", "-e", str(folder), "--best", "-t", "ks:dev")
    assert one.returncode == 0, one.stderr
    assert "accuracy" in one.stdout and "WER" not in one.stdout
    assert set(results["asr"]) == {"dev-clean", "test-clean", "test-other"}

    table = run_mtl("results", str(folder), "--all")
    assert table.returncode == 0, table.stderr
    assert "UER" in table.stdout and "test-other" in table.stdout

    again = run_mtl("-c", str(folder / "config.yaml"), "-n", "again")
    assert again.returncode == 0, again.stderr
    first = checkpoints.load(folder / "states-3.ckpt").upstream
    second = checkpoints.load(tmp_path / "result/downstream/again/states-3.ckpt").upstream
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_result(
    run_mtl, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
):
    words = ["-u", "hubert_tiny", "-d", "ks,er", "-c", str(SMALL_HEADS), "--steps", "20"]
    settings = "runner.save_step=1,,runner.test_first=false,,runner.test_last=false"
    whole = run_mtl(*words, "-o", settings, "-n", "whole")
    assert whole.returncode == 0, whole.stderr

    # A line for every step: the run is killed when it has said that it took the third.
    words += ["-o", settings + ",,runner.log_step=1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_mtl.py"), *words, "-n", "killed"],
        cwd=tmp_path,
        env=environment(tiny_corpus, manifest_cache),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    folder = tmp_path / "result" / "downstream" / "killed"
    assert process.stderr is not None
    for line in process.stderr:
        if "step 3 " in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"

    resumed = run_mtl(*words, "-n", "killed", "-a")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"states-(\d+)\.ckpt\b.*\b\1\b", resumed.stderr)
    one = checkpoints.load(tmp_path / "result/downstream/whole/states-20.ckpt")
    two = checkpoints.load(folder / "states-20.ckpt")
    assert all(torch.equal(one.upstream[n], two.upstream[n]) for n in one.upstream)


def test_a_dry_run_trains_nothing(run_mtl, tmp_path: Path):
    done = run_mtl("-u", "hubert_tiny", "-d", "all", "-c", str(SMALL_HEADS), "-n", "x", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    assert "ks dev: passed" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-d", "ars"], "'ars'"),
        (["-u", "hubert_tny", "-d", "ks"], "hubert_tny"),
        (["-u", "hubert_tiny", "-d", "ks", "-k", "nowhere.pt"], "nowhere.pt"),
        (["-u", "hubert_tiny", "-d", "ks", "-o", "runner.total_step=3"], "'total_steps'"),
        (["-u", "hubert_tiny", "-d", "ks", "-c", "nowhere.yaml"], "nowhere.yaml"),
        (["-u", "hubert_tiny", "-d", "ks", "--data", "/nowhere"], "The data folder /nowhere"),
        (["-u", "hubert_tiny", "-d", "ks", "--device", "cuda:99"], "cuda:99"),
        (["-m", "evaluate", "-e", "nowhere"], "nowhere"),
        (["-m", "evaluate"], "-e RUN"),
        (["-m", "evaluate", "-e", ".", "--best"], "dev-best.ckpt"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(run_mtl, words: list[str], named: str):
    done = run_mtl(*words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert named in done.stderr
    assert done.stderr.count("error: ") == 1


def test_verbose_shows_the_traceback_and_the_code_of_a_mistake(run_mtl):
    done = run_mtl("-d", "ars", "--verbose")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert code_shown(done) == "unknown-name"


def test_a_run_is_not_overwritten_by_accident(run_mtl):
    words = ["-u", "hubert_tiny", "-d", "ks", "-c", str(SMALL_HEADS), "--steps", "1", "-n", "one"]
    assert run_mtl(*words).returncode == 0
    second = run_mtl(*words, "--verbose")
    assert second.returncode == 2
    assert code_shown(second) == "file-exists" and "states-1.ckpt" in second.stderr


def test_a_run_described_by_a_file_alone_resumes(run_mtl, tmp_path: Path):
    settings = yaml.safe_load(SMALL_HEADS.read_text())
    settings["upstream"] = {"name": "hubert_tiny"}
    settings["downstream"] = ["er"]
    settings["runner"]["total_steps"] = 1
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert run_mtl("-c", "run.yaml", "--seed", "0").returncode == 0
    folder = tmp_path / "result" / "downstream" / "hubert_tiny-er"
    assert (folder / "states-1.ckpt").is_file()
    resumed = run_mtl("-c", "run.yaml", "-a", "--steps", "2")
    assert resumed.returncode == 0, resumed.stderr
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["seed"] == 0
    assert "at step 1" in resumed.stderr


def test_the_mark_of_a_finished_run_is_new_when_it_was_trained_on(run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-d", "er", "-c", str(SMALL_HEADS), "-p", "run", "-a"]
    words += ["-o", "runner.test_first=false", "--steps"]
    marks = []
    # Repeated with the same steps, the run is only evaluated again.
    for steps in ("1", "1", "2"):
        assert run_mtl(*words, steps).returncode == 0
        marks.append(read_finished(tmp_path / "run"))
    assert marks[0] is not None and marks[0] == marks[1]
    assert marks[2] is not None and marks[2].id != marks[0].id
    assert [mark.step for mark in marks if mark] == [1, 1, 2]


def test_ctrl_c_saves_the_run_after_the_current_step(run_mtl, tmp_path: Path, monkeypatch):
    take = TrainingStep.take

    def interrupted(step: TrainingStep) -> object:
        signal.raise_signal(signal.SIGINT)
        return take(step)

    monkeypatch.setattr(TrainingStep, "take", interrupted)
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS), "-d", "er", "--steps", "9", "-p", "run"]
    ended = run_mtl(*words, "-o", "runner.test_first=false")
    assert ended.returncode == 130, ended.stderr
    assert read_finished(tmp_path / "run") is None
    assert [path.name for path in checkpoints.states_files(tmp_path / "run")] == ["states-1.ckpt"]


def test_the_log_states_what_is_trained_and_from_which_weights(run_mtl):
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS), "--steps", "1"]
    settings = "optimizer.lr=2e-4,,runner.test_first=false,,runner.test_last=false"
    first = run_mtl(*words, "-d", "er", "-p", "first", "-o", settings)
    assert re.search(r"^ +encoder +trained \(.* parameters\), from  hubert_tiny$", *shown(first))
    assert re.search(r"^ +er +trained .*, from +random weights$", *shown(first))
    assert re.search(r"AdamW, learning rate 0\.0002 ", first.stderr)

    words += ["-d", "er,ks", "-p", "second", "--freeze_upstream", "-i", "first"]
    second = run_mtl(*words, "-o", settings)
    file = r".*first/states-1\.ckpt"
    assert re.search(rf"^ +encoder +frozen .*, from +run +step 1 +{file}$", *shown(second))
    assert re.search(rf"^ +er +trained .*, from +run +step 1 +{file}$", *shown(second))
    assert re.search(r"^ +ks +trained .*, from +random weights$", *shown(second))


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_is_resumed_without_naming_its_tasks(saved: bool, run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS), "-d", "er", "--steps", "1", "-p", "run"]
    assert run_mtl(*words).returncode == 0
    if not saved:
        (tmp_path / "run" / "states-1.ckpt").unlink()
    resumed = run_mtl("-a", "-p", "run", "--steps", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert list(checkpoints.load(tmp_path / "run" / "states-2.ckpt").tasks) == ["er"]
    evaluated = run_mtl("-m", "evaluate", "-e", "run")
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_run_is_resumed_with_its_own_tasks_only(run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS)]
    assert run_mtl(*words, "-d", "er,ks", "--steps", "1", "-p", "run").returncode == 0
    fewer = run_mtl("-e", "run", "-d", "ks", "--steps", "2", "--verbose")
    assert fewer.returncode == 2
    assert code_shown(fewer) == "resume-conflict" and "er,ks" in fewer.stderr
    reordered = run_mtl("-e", "run", "-d", "ks,er", "--steps", "2")
    assert reordered.returncode == 0, reordered.stderr
    assert list(checkpoints.load(tmp_path / "run" / "states-2.ckpt").tasks) == ["er", "ks"]


def test_a_run_is_not_resumed_with_settings_that_its_state_does_not_fit(run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS), "-d", "er", "--steps", "2", "-p", "run"]
    assert run_mtl(*words, "-o", "runner.save_step=1,,runner.max_keep=5").returncode == 0
    width = "er.downstream_expert.modelrc.projector_dim=7"
    for change, code, named in [
        (["--freeze_upstream"], "resume-conflict", r"upstream\.freeze .*False"),
        (["-s", "last_hidden_state"], "resume-conflict", "feature_selection .*'hidden_states'"),
        (["-u", "fbank"], "resume-conflict", r"upstream\.name .*'hubert_tiny'"),
        (["-o", "optimizer.name=SGD"], "resume-conflict", r"optimizer\.name .*'AdamW'"),
        (["-o", width], "checkpoint-mismatch", r"\ber\b.*projector\.weight"),
    ]:
        done = run_mtl("-e", "run", "--steps", "3", *change, "--verbose")
        assert done.returncode == 2, done.stderr
        assert code_shown(done) == code
        assert re.search(named, done.stderr)
    older = run_mtl("-e", "run/states-1.ckpt", "--steps", "3", "--verbose")
    assert older.returncode == 2
    assert code_shown(older) == "resume-conflict" and "states-2.ckpt" in older.stderr
    fork = run_mtl("-e", "run/states-1.ckpt", "--steps", "2", "-p", "fork")
    assert fork.returncode == 0, fork.stderr
    assert (tmp_path / "fork" / "states-2.ckpt").is_file()
    one = checkpoints.load(tmp_path / "run" / "states-2.ckpt").upstream
    two = checkpoints.load(tmp_path / "fork" / "states-2.ckpt").upstream
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_corpora_may_move_between_training_and_evaluation(
    run_mtl, tiny_corpus: Path, tmp_path: Path
):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_corpus / "IEMOCAP_full_release", here / "IEMOCAP_full_release")
    words = ["-u", "hubert_tiny", "-c", str(SMALL_HEADS), "-d", "er", "--steps", "1", "-p", "run"]
    assert run_mtl(*words, "--data", "here").returncode == 0
    here.rename(there)
    missed = run_mtl("-m", "evaluate", "-e", "run")
    assert missed.returncode == 2 and "here/IEMOCAP_full_release" in missed.stderr
    found = run_mtl("-m", "evaluate", "-e", "run", "--data", "there")
    assert found.returncode == 0, found.stderr


def test_two_processes_do_not_train_in_one_folder(run_mtl, tmp_path: Path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        words = ["-u", "hubert_tiny", "-d", "er", "--steps", "1", "-p", "run", "--verbose"]
        done = run_mtl(*words)
    assert done.returncode == 2
    assert code_shown(done) == "folder-in-use"


def test_a_folder_that_cannot_be_made_is_a_mistake_of_the_user(run_mtl, tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = run_mtl("-u", "hubert_tiny", "-d", "er", "--steps", "1", "-p", "file/run")
    assert done.returncode == 2
    assert os.strerror(errno.ENOTDIR) in done.stderr and "file/run" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_incomplete_environment_of_torchrun_is_refused(run_mtl):
    done = run_mtl("-u", "hubert_tiny", "-d", "ks", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "$RANK" in done.stderr and "$WORLD_SIZE" in done.stderr


@pytest.mark.slow
def test_a_mini_corpus_is_made_once_and_never_overwritten(run_mtl, tmp_path: Path):
    made = run_mtl("make-corpus", "corpus", "--size", "tiny", "--seed", "3")
    assert made.returncode == 0, made.stderr
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    assert len(stamps) > 100
    again = run_mtl("make-corpus", "corpus", "--size", "tiny", "--seed", "3")
    assert again.returncode == 0, again.stderr
    other = run_mtl("make-corpus", "corpus", "--size", "tiny", "--seed", "4")
    assert other.returncode == 2 and "size tiny, seed 3" in other.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}


def test_the_lists_of_plugins(run_mtl):
    tasks = run_mtl("tasks")
    assert tasks.returncode == 0, tasks.stderr
    assert "LibriSpeech" in tasks.stdout and "asv" in tasks.stdout
    upstreams = run_mtl("upstreams")
    assert "hubert_large_ll60k" in upstreams.stdout


def test_the_results_of_a_folder_that_is_not_a_run_are_refused(run_mtl, tmp_path: Path):
    done = run_mtl("results", str(tmp_path), "--verbose")
    assert done.returncode == 2
    assert code_shown(done) == "file-missing" and str(tmp_path) in done.stderr


def test_a_restart_by_torchrun_resumes_its_own_run_only(run_mtl, tmp_path: Path):
    words = ["-u", "hubert_tiny", "-d", "ks", "-c", str(SMALL_HEADS), "-n", "run"]
    settings = "runner.test_first=false,,runner.test_last=false"
    # What torchrun tells a single process; the parent stays the same, as its agent would.
    launch = {"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "job"}
    first = run_mtl(*words, "--steps", "2", "-o", settings, **launch)
    assert first.returncode == 0, first.stderr
    again = {**launch, "TORCHELASTIC_RESTART_COUNT": "1"}
    other = run_mtl(*words, "--steps", "4", "-o", settings, **again | {"TORCHELASTIC_RUN_ID": "x"})
    assert other.returncode == 2 and "states-2.ckpt" in other.stderr
    own = run_mtl(*words, "--steps", "4", "-o", settings, **again)
    assert own.returncode == 0, own.stderr
    assert re.search(r"states-2\.ckpt\b.*\b2\b", own.stderr)


@pytest.mark.parametrize("command", ["train", "study", "serve"])
def test_flags_may_have_dashes_or_underscores(command: str) -> None:
    parser = command_parser(command)
    for flag in [name for name in parser._option_string_actions if name.startswith("--")]:
        for spelled in (flag.replace("_", "-"), f"--{flag[2:].replace('-', '_')}"):
            assert parser._spelled(spelled) == flag  # type: ignore[attr-defined]
            assert parser._spelled(f"{spelled}=a_b-c") == f"{flag}=a_b-c"  # type: ignore[attr-defined]


def test_words_after_the_separator_are_not_respelled() -> None:
    words = ["-p", "out", "--", "--freeze-upstream", "--past-exp"]
    assert command_parser("folds").parse_args(words).flags == words[3:]
