"""The benchmarks run, and log what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *words: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_benchmark_of_balancers_measures_every_way(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    words = ["--size", "tiny", "--tasks", "ks,ic", "--repeats", "1", "--log", str(log)]
    run("balancers.py", *words)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["balancer"] for record in records][:2] == ["sum", "uncertainty"]
    assert all(seconds > 0 for record in records for seconds in record["seconds"])
    assert {record["balancer"]: record["kept"] > 0 for record in records}["pcgrad"]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "variants"), [("frozen", 2), ("labels", 6)])
def test_the_benchmark_of_transfer_trains_every_variant(
    what: str, variants: int, tiny_corpus: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    words = ["--tasks", "ks,ic", "--steps", "1", "--seeds", "0", "--jobs", "1"]
    words += ["--folder", str(tmp_path / "runs"), "--data", str(tiny_corpus), "--log", str(log)]
    run("transfer.py", what, *words)
    finished = sorted((tmp_path / "runs").glob("*/finished.json"))
    assert len(finished) == variants
    finished[-1].unlink()  # as after an interruption
    run("transfer.py", what, *words)
    values, again = (json.loads(line)["values"] for line in log.read_text().splitlines())
    assert values == again
    assert len(values) == variants
    assert all({"ks dev acc", "ic dev acc"} <= one.keys() for (one,) in values.values())


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_on_a_cpu_as_a_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = ["bash", str(BENCHMARKS / "gpu_check.sh"), "cpu", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in log.read_text().splitlines()]
    by_name = {record["benchmark"]: record for record in records}
    assert set(by_name) == {"step", "loading", "precision"}
    steps = [record for record in records if record["benchmark"] == "step"]
    assert [(record["way"], record["precision"]) for record in steps] == [
        ("by task", "float32"),
        ("packed", "float32"),
        ("packed", "bfloat16"),
        ("same length", "float32"),
        ("same length", "bfloat16"),
    ]
    assert all(rate > 0 for record in steps for rate in record["rates"])
    loading = by_name["loading"]
    assert 0 < loading["waiting"][0] < loading["step"][0] and loading["encoder"][0] > 0
    assert len(by_name["precision"]["ks training loss"]) == 6


@pytest.mark.slow
def test_the_benchmark_of_scaling_varies_processes_tasks_and_lengths(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    words = ["--size", "tiny", "--tasks", "ks,ic", "--repeats", "1", "--processes", "1,2"]
    words += ["--seconds", "1,2", "--audio", "2", "--data", str(tiny_corpus), "--log", str(log)]
    run("scaling.py", *words)
    record = json.loads(log.read_text())
    for varied, keys in (("processes", "12"), ("tasks", "12"), ("seconds", "12")):
        assert list(record[varied]) == list(keys)
        assert all(rate > 0 for rate in record[varied].values())


@pytest.mark.slow
def test_the_benchmark_of_manifests_measures_every_start(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run("manifests.py", "--utterances", "3000", "--log", str(log))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["start"] for record in records] == ["first", "second"]
    for record in records:
        assert all(record[part] > 0 for part in ("libraries", "opened", "with_workers"))
        assert all(record["seconds"][part] > 0 for part in ("load", "open", "resume"))


@pytest.mark.slow
def test_the_benchmark_of_an_evaluation_compares_both_ways(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    words = ["--size", "tiny", "--seconds", "1,4", "--repeats", "1", "--data", str(tiny_corpus)]
    run("evaluate.py", *words, "--log", str(log))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["batch_seconds"] for record in records] == [1, 4]
    assert all(record["together"][0] > 0 and record["alone"][0] > 0 for record in records)


@pytest.mark.slow
def test_the_benchmark_of_pretraining_measures_both_tasks(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    words = ["--size", "tiny", "--tasks", "ks,ic", "--seconds", "4", "--repeats", "1"]
    run("pretraining.py", *words, "--log", str(log))
    (record,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert set(record["seconds"]) == {"without", "supervised", "ssl"}
    assert all(seconds > 0 for measured in record["seconds"].values() for seconds in measured)
