"""Functions in a program that goes on: its log, its signal handlers, its threads, its mistakes."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from s3prl_mtl import api
from s3prl_mtl.cli.main import main
from s3prl_mtl.tracking.recorder import read_results
from s3prl_mtl.training.signals import Stopped
from tests.mistakes import user_error

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
FAST = {"ks.downstream_expert.datarc.num_workers": 0, "runner.num_workers": 0}


def train(corpus: Path, cache: Path, folder: Path, **others) -> api.RunResults:
    settings = {"steps": 2, "config": "demo", "device": "cpu", "override": FAST, **others}
    return api.train(
        upstream="hubert_tiny",
        downstream=["ks"],
        data=corpus,
        cache_dir=cache,
        expdir=folder,
        **settings,
    )


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, manifest_cache: Path, tmp_path_factory) -> api.RunResults:
    return train(tiny_corpus, manifest_cache, tmp_path_factory.mktemp("api") / "run")


def test_results_are_those_of_the_files(run: api.RunResults) -> None:
    assert run.step == 2 and run.is_lead
    kept = read_results(run.folder)
    assert run.results["ks"]["test"] == kept["ks"]["test"]
    (record,) = run.records()
    assert record["value"] == run.results["ks"]["test"]["acc"] and record["step"] == 2
    assert api.results(run.folder) == run.records()


def test_the_command_line_has_the_same_results(
    run: api.RunResults, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["-u", "hubert_tiny", "-d", "ks", "--data", str(tiny_corpus), "--steps", "2"]
    words += ["--cache_dir", str(manifest_cache), "-p", str(folder), "-c", "demo"]
    words += ["--device", "cpu", "-o", ",,".join(f"{key}={value}" for key, value in FAST.items())]
    assert main(["train", *words]) == 0
    assert read_results(folder)["ks"] == read_results(run.folder)["ks"]
    assert (folder / "config.yaml").read_text() == (run.folder / "config.yaml").read_text()


def test_an_evaluation_returns_the_splits_that_were_asked_for(run: api.RunResults) -> None:
    found = api.evaluate(run.folder, evaluate_split=[("ks", "dev")])
    assert found.results == {"ks": {"dev": run.results["ks"]["dev"]}}
    assert found.splits == [("ks", "dev")] and found.step == 2
    assert api.evaluate(run.folder, best=True).results["ks"].keys() == {"test"}


def test_a_second_call_resumes(
    run: api.RunResults, tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(tiny_corpus, manifest_cache, folder, steps=1)
    with user_error("file-exists", where="-n or -p"):
        train(tiny_corpus, manifest_cache, folder)
    resumed = api.train(expdir=folder, auto_resume=True, steps=2)
    assert resumed.step == 2


def test_predictions_of_files_and_of_a_loaded_run_are_equal(
    run: api.RunResults, tiny_corpus: Path, tmp_path: Path
) -> None:
    audio = sorted(tiny_corpus.rglob("*.wav"))[:2]
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    seen: list[dict] = []
    found = api.predict(run.folder, [*audio, bad], device="cpu")
    assert found.failed == [str(bad)] and len(found.lines) == 3
    with user_error("audio-unreadable", where=r"bad\.wav$"):
        found.require_all()
    loaded = run.load(device="cpu").predict(audio)
    assert [line["ks"]["class"] for line in found.lines[:2]] == [p["ks"]["class"] for p in loaded]
    again = api.predict(run.folder, audio, device="cpu", out=tmp_path / "o", on_line=seen.append)
    assert not again.lines and len(seen) == 2
    assert [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()] == seen


def test_a_wrong_argument_names_the_nearest_one() -> None:
    with user_error("unknown-key", where=r"train\(\)") as caught:
        api.train(stpes=3)  # type: ignore[call-arg]
    assert "steps" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (api.train, {"fraction": 0.5}),
        (api.train, {"override": ["seed=1"]}),
        (api.train, {"balancer": ["pcgrad"]}),
        (api.train, {"speed": 0.9}),
        (api.export, {"run": "run", "format": None, "out": "out"}),
        (api.export, {"run": "run", "format": "hear", "out": "out", "layer": "2"}),
        (api.predict, {"run": None, "audio": "speech.wav"}),
    ],
)
def test_a_value_of_the_wrong_type_is_named(call, wrong: dict[str, object]) -> None:
    with user_error("wrong-type", where=rf"{call.__name__}\(\)"):
        call(**wrong)


def test_tables_without_splits_and_an_empty_list_of_encoders_are_refused(tmp_path: Path) -> None:
    with user_error("wrong-type", where="manifest, ks"):
        api.train(downstream="ks", manifest={"ks": "train.csv"}, expdir=tmp_path / "run")
    with user_error("missing-option", where="--tuned"):
        api.merge(base="hubert_tiny", tuned=[], alpha=0.5, out=tmp_path / "merged.pt")


def test_numbers_of_numpy_and_open_files_are_accepted(tmp_path: Path) -> None:
    with user_error("checkpoint-missing"):
        api.export(tmp_path / "run", format="hear", out=tmp_path / "out", layer=np.int64(1))
    with user_error("checkpoint-missing"):
        api.predict(tmp_path / "run", stdin=io.BytesIO(), batch_seconds=np.float32(3))


def test_a_run_is_found_from_another_working_directory(
    run: api.RunResults, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(run.folder.parent)
    found = api.evaluate(run.folder.name, evaluate_split=["ks:dev"])
    monkeypatch.chdir(tmp_path)
    assert found.folder == run.folder and found.load(device="cpu", nbest=1).tasks == ["ks"]


def test_a_task_without_a_best_checkpoint_is_not_an_unknown_task(
    run: api.RunResults, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "ks" / "dev-best.ckpt").rename(folder / "ks" / "other-best.ckpt")
    (folder / "ks").rename(folder / "er")
    with user_error("checkpoint-missing", where="-t ks"):
        api.evaluate(folder, evaluate_split="ks:dev", best=True)


def test_a_mistake_is_an_error_and_nothing_is_printed(tmp_path: Path, capfd) -> None:
    with user_error("missing-option", where="-d"):
        api.train(expdir=tmp_path)
    with user_error("unknown-name", where="--format"):
        api.export(tmp_path, format="onxn", out=tmp_path / "out")
    with user_error("conflicting-options", where="-n and -p"):
        api.train(expdir=tmp_path, expname="first")
    assert capfd.readouterr() == ("", "")


def test_log_and_signal_handlers_are_left_as_they_were(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    root = logging.getLogger()
    shown: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = shown.append  # type: ignore[method-assign]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handlers, level = root.handlers[:], root.level
    root.handlers, root.level = [handler], logging.WARNING
    try:
        train(tiny_corpus, manifest_cache, tmp_path / "run")
        assert root.handlers == [handler] and root.level == logging.WARNING
        assert not handler.filters
    finally:
        root.handlers, root.level = handlers, level
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    # The log of the run is complete; the program shows warnings only, as before.
    assert " INFO " in (tmp_path / "run" / "log.txt").read_text()
    assert all(record.levelno >= logging.WARNING for record in shown)


def test_a_thread_may_train(tiny_corpus: Path, manifest_cache: Path, tmp_path: Path) -> None:
    found: list[api.RunResults] = []
    thread = threading.Thread(
        target=lambda: found.append(train(tiny_corpus, manifest_cache, tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert found[0].step == 2


def test_an_interrupt_saves_the_run_and_the_program_goes_on(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path, monkeypatch
) -> None:
    from s3prl_mtl.training.runner import MultiTaskRunner

    take = MultiTaskRunner.train_step

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(self)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskRunner, "train_step", interrupted)
        with pytest.raises(Stopped):
            train(tiny_corpus, manifest_cache, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert api.train(expdir=tmp_path / "run", auto_resume=True).step == 2


def test_splits_without_a_score_come_with_the_others(run: api.RunResults, monkeypatch) -> None:
    from s3prl_mtl.api import evaluation
    from s3prl_mtl.errors import UserError

    def fail(saved, path, config, folder, world, recorder, splits):
        return list(splits), {("ks", "dev"): UserError("No.", code="undefined-metric")}

    monkeypatch.setattr(evaluation, "evaluate_checkpoint", fail)
    with pytest.raises(api.UnscoredSplits) as caught:
        api.evaluate(run.folder, evaluate_split="ks:dev")
    assert caught.value.code == "undefined-metric"
    assert caught.value.results.splits == [("ks", "dev")]


def test_tables_of_a_corpus_train_and_pass_the_check(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    written = api.manifest("ks", data=tiny_corpus, out=tmp_path / "tables")
    assert (
        written.rows["train"]
        == len((tmp_path / "tables" / "train.csv").read_text().splitlines()) - 1
    )
    report = api.check_corpus("ks", manifest=written.manifest, cache_dir=manifest_cache)
    assert not report.mistakes()
    assert {counts.split: counts.utterances for counts in report.splits} == dict(written.rows)
    trained = api.train(
        upstream="hubert_tiny",
        downstream="ks",
        manifest=written.manifest,
        cache_dir=manifest_cache,
        expdir=tmp_path / "run",
        config=["demo"],
        steps=1,
        device="cpu",
        fraction={"ks": 0.5},
        override=FAST,
    )
    assert trained.results["ks"]["test"]


def test_a_study_is_planned_without_being_executed(tiny_corpus: Path, tmp_path: Path) -> None:
    plan = api.plan_study(
        tmp_path / "study",
        upstream="hubert_tiny",
        downstream=["ks", "er"],
        scenario=["a"],
        seeds=[3, 5],
        steps=2,
        data=tiny_corpus,
        override={"optimizer.lr": 1e-5, "scheduler": None},
    )
    assert plan.settings.override == "optimizer.lr=1e-05,,scheduler=null"
    assert set(plan.states()) == {f"a/seed{n}/{task}" for n in (3, 5) for task in ("ks", "er")}
    assert "--seed 5" in plan.script()
    assert not (tmp_path / "study").exists()
    assert plan.write_slurm().is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [0, "", "a", [], [0, "a"], [-1], -1])
def test_seeds_are_numbers(seeds, tmp_path: Path) -> None:
    with user_error("invalid-value", where="--seeds"):
        api.plan_study(tmp_path, upstream="hubert_tiny", downstream="ks,er", seeds=seeds)


def test_seeds_are_listed_or_counted(tmp_path: Path) -> None:
    def seeds_of(given) -> tuple[int, ...]:
        plan = api.plan_study(tmp_path, upstream="hubert_tiny", downstream="ks,er", seeds=given)
        return plan.settings.plan.seeds

    assert seeds_of(2) == seeds_of("2") == (0, 1)
    assert seeds_of([2]) == (2,) and seeds_of([0]) == (0,) and seeds_of("3,5") == (3, 5)


@pytest.mark.slow
def test_a_study_returns_its_report(
    tiny_corpus: Path, manifest_cache: Path, tmp_path: Path
) -> None:
    # In a process of its own: the suite replaces the handlers that a study needs.
    program = f"""
from s3prl_mtl import api
found = api.study({str(tmp_path / "study")!r}, upstream="hubert_tiny", downstream=["ks", "er"],
    scenario="a", steps=2, config="demo", frozen_config="none", device="cpu",
    data={str(tiny_corpus)!r}, cache_dir={str(manifest_cache)!r})
assert not found.missing and set(found.states.values()) == {{"done"}}, found
assert found.report.path.is_file() and found.report.results.tasks == ["ks", "er"]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=500)
