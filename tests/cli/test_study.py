"""`s3prl-mtl study`: its flags, and what it remembers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_mtl import api
from s3prl_mtl.api import studies
from s3prl_mtl.cli.main import main
from s3prl_mtl.study.results import Row
from s3prl_mtl.study.settings import read_settings
from s3prl_mtl.study.study_results import read_study
from s3prl_mtl.tracking.recorder import read_results
from tests.launcher import ROOT, Started, environment, until
from tests.mistakes import user_error

START = ["-u", "hubert_tiny", "-d", "ks,er", "--steps", "2", "--device", "cpu"]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that was started; nothing is executed."""
    monkeypatch.setattr(studies, "_execute", _only_write)
    assert main(["study", str(tmp_path), *START]) == 0
    return tmp_path


def _only_write(plan, device, alone) -> studies.StudyResults:
    from s3prl_mtl.study.settings import write_settings

    write_settings(studies._checked_files(plan), plan.out)
    return studies.StudyResults(plan.out, {}, [], None)


def test_the_file_of_a_study_has_what_reports_read(planned: Path) -> None:
    content = json.loads((planned / "study.json").read_text())
    assert content["format"] == 1 and content["upstream"] == "hubert_tiny"
    assert content["tasks"] == ["ks", "er"] and content["steps"] == 2
    assert content["seeds"] == [0] and content["alphas"] == []
    run = content["runs"][-1]
    assert run["scenario"] == "c" and run["tasks"] == [run["left_out"]] and run["alpha"] is None
    assert set(run["needs"]) <= {other["name"] for other in content["runs"]}


def test_the_settings_are_read_back(planned: Path) -> None:
    before = read_settings(planned)
    assert main(["study", str(planned)]) == 0
    assert read_settings(planned) == before


@pytest.fixture
def begun(planned: Path) -> Path:
    """A study of which a frozen and a joint run have a checkpoint."""
    for name in ("a/seed0/ks", "b1/seed0"):
        (planned / name).mkdir(parents=True)
        (planned / name / "states-1.ckpt").touch()
    return planned


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["-u", "hubert"], "-u"),
        (["-d", "ks,ic"], "-d"),
        (["--steps", "3"], "--steps"),
        (["-o", "optimizer.lr=1"], "-o"),
        (["-c", "demo"], "-c"),
        (["--balancer", "pcgrad"], "--balancer"),
        (["-s", "layer_results"], "-s"),
        (["--seeds", "4,5"], "--seeds"),
        (["--leave_out", "ks"], "--leave_out"),
    ],
)
def test_changed_settings_are_refused_by_name(begun: Path, words, flag: str, capsys) -> None:
    before = read_settings(begun)
    assert main(["study", str(begun), *words, "--verbose"]) == 2
    shown = capsys.readouterr().err
    assert "[resume-conflict]" in shown and f"Where: {flag}" in shown
    assert read_settings(begun) == before


def test_settings_may_change_while_no_run_has_begun(planned: Path) -> None:
    words = ["-u", "hubert", "-d", "ks,ic", "--steps", "3", "-o", "optimizer.lr=1"]
    words += ["--balancer", "pcgrad", "--seeds", "4,5", "--leave_out", "ks"]
    assert main(["study", str(planned), *words]) == 0
    settings = read_settings(planned)
    assert settings is not None and settings.upstream == "hubert" and settings.steps == 3
    assert settings.plan.tasks == ("ks", "ic") and settings.plan.seeds == (4, 5)


def test_settings_of_joint_runs_may_change_while_none_has_begun(begun: Path) -> None:
    (begun / "b1/seed0/states-1.ckpt").unlink()
    assert main(["study", str(begun), "--balancer", "pcgrad"]) == 0
    assert main(["study", str(begun), "--steps", "3"]) == 2


def test_a_changed_config_file_is_named_and_does_not_hide_the_state(
    begun: Path, tmp_path: Path, capsys
) -> None:
    own, out = tmp_path / "own.yaml", tmp_path / "other"
    own.write_text("runner: {log_step: 1}\n")
    assert main(["study", str(out), *START, "-c", str(own)]) == 0
    own.write_text("runner: {log_step: 3}\n")
    assert main(["study", str(out), "--print"]) == 0  # no run has begun
    (begun / "a").rename(out / "a")
    for remove in (False, True):
        if remove:
            own.unlink()
        capsys.readouterr()
        assert main(["study", str(out), "--print", "--verbose"]) == 2
        shown = capsys.readouterr().err
        assert str(own) in shown and ("[file-missing]" if remove else "[resume-conflict]") in shown
        assert main(["study", str(out), "--status"]) == 0
        assert "a/seed0/ks" in capsys.readouterr().out


def test_a_study_may_grow(begun: Path, capsys) -> None:
    words = ["--scenario", "d", "--alphas", "0.5", "--seeds", "2"]
    assert main(["study", str(begun), *words]) == 0
    assert main(["study", str(begun), "--alphas", "0.9"]) == 2
    assert "--alphas 0.5,0.9" in capsys.readouterr().err
    settings = read_settings(begun)
    assert settings is not None
    assert settings.plan.scenarios == ("a", "b1", "b2", "c", "d")
    assert settings.plan.seeds == (0, 1) and len(settings.plan.runs) == 18


def test_paths_and_devices_may_change(planned: Path) -> None:
    assert main(["study", str(planned), "--data", "elsewhere", "--device", "cuda"]) == 0
    settings = read_settings(planned)
    assert settings is not None and str(Path("elsewhere").absolute()) in settings.machine


def test_print_and_status_write_nothing(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["study", str(out), *START, "--print"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("s3prl-mtl train ")]) == 7
    assert main(["study", str(out), *START, "--status"]) == 0
    assert not out.exists()


def test_print_of_a_scenario_has_those_that_it_starts_from(planned: Path, capsys) -> None:
    assert main(["study", str(planned), "--print", "--scenario", "b1"]) == 0
    names = [line[2:] for line in capsys.readouterr().out.splitlines() if line[0] == "#"]
    assert names == ["a/seed0/ks", "a/seed0/er", "b1/seed0"]


def test_settings_of_superb_are_those_of_frozen_runs(planned: Path, capsys) -> None:
    assert main(["study", str(planned), "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        if line.startswith("s3prl-mtl"):
            assert ("-c superb/" in line) == ("--freeze_upstream" in line)


def test_learning_rates_are_those_of_frozen_runs(tmp_path: Path, capsys) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text("ks: 1.0e-2\n")
    words = [*START, "-o", "runner.log_step=1", "--learning-rates", str(rates), "--print"]
    assert main(["study", str(tmp_path / "out"), *words]) == 0
    for line in capsys.readouterr().out.splitlines():
        frozen_ks = "-d ks " in line and "--freeze_upstream" in line
        assert ("runner.log_step=1,,optimizer.lr=0.01" in line) == frozen_ks


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "missing-option"),
        (["-u", "hubert_tiny"], "missing-option"),
        ([*START, "--scenario", "b9"], "unknown-name"),
        ([*START, "--seeds", "0"], "invalid-value"),
        ([*START, "--seeds", "many"], "invalid-value"),
        ([*START, "--alphas", "half"], "invalid-value"),
        ([*START, "--alphas", "nan"], "invalid-value"),
        ([*START, "--alphas", "0.1,0.10000000001"], "invalid-value"),
        ([*START, "--frozen_config", "superb/{tsk}"], "file-missing"),
        ([*START, "--jobs", "0"], "invalid-value"),
        ([*START, "--rates", "1e-3"], "conflicting-options"),
        ([*START, "--run", "a/seed9/ks"], "unknown-name"),
        ([*START, "-c", "no-such-file.yaml"], "file-missing"),
        (["-u", "hubert_tiny", "-d", "ks,er", "--lr-sweep"], "missing-option"),
        ([*START, "--lr-sweep", "--scenario", "c"], "conflicting-options"),
        ([*START, "--lr-sweep", "--balancer", "pcgrad"], "conflicting-options"),
        ([*START, "--lr-sweep", "--print"], "conflicting-options"),
        ([*START, "--run", "a/seed0/ks", "--jobs", "2"], "conflicting-options"),
        ([*START, "--seeds", "1,1"], "conflicting-options"),
        ([*START, "--scenario", "a,a"], "conflicting-options"),
        ([*START, "--leave_out", "ks,ks"], "conflicting-options"),
        (["-u", "hubert_tiny", "-d", "ks,ks"], "conflicting-options"),
        ([*START, "--scenario", ","], "invalid-value"),
        # Found by building the configs of the runs.
        (["-u", "hubrt", "-d", "ks,er"], "unknown-name"),
        ([*START, "-k", "no-such-file.pt"], "checkpoint-missing"),
        ([*START, "-o", "optimizer.lrr=1", "--data", "."], "unknown-key"),
        ([*START, "--balancer", "pcgrd", "--data", "."], "unknown-name"),
        ([*START, "--balancer", "fixed:ks=1,er=1", "--data", "."], "unknown-name"),
        ([*START, "--data", "."], "several"),
        ([*START, "--data", "no-such-folder"], "file-missing"),
        ([*START], "corpus-unset"),
        ([*START, "--data", ".", "--lr-sweep"], "corpus-incomplete"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    tmp_path: Path, words: list[str], code: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUPERB_DATA", raising=False)
    out = tmp_path / "out"
    assert main(["study", str(out), *words, "--verbose"]) == 2
    assert f"[{code}]" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "words", [["--balancer", "fixed:ks=1,er=1"], ["-o", "runner.sampling=weights:ks=2,er=2"]]
)
def test_the_run_that_lacks_the_task_of_a_setting_is_named(
    words: list[str], tmp_path: Path, capsys
) -> None:
    assert main(["study", str(tmp_path / "out"), *START, "--data", ".", *words]) == 2
    assert re.search(r"/seed0/\S+ \(without (ks|er)\)", capsys.readouterr().err)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, place: str, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["study", str(tmp_path / place), *START, "--verbose"]) == 2
    shown = capsys.readouterr().err
    # The file itself, not only the folder below it.
    assert "[invalid-value]" in shown and re.search(rf"{tmp_path}/file(?!/)", shown)


def test_learning_rates_of_unknown_tasks_are_refused(tmp_path: Path, capsys) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text("ks: 1.0e-2\nsid: 1.0e-1\n")  # sid is a task, of other studies
    words = ["study", str(tmp_path / "out"), *START, "--print", "--verbose"]
    assert main([*words, "--learning-rates", str(rates)]) == 0
    rates.write_text("ks: 1.0e-2\nsd1: 1.0e-1\n")
    assert main([*words, "--learning-rates", str(rates)]) == 2
    shown = capsys.readouterr().err
    assert "[unknown-name]" in shown and "sd1" in shown and str(rates) in shown
    with user_error("unknown-name"):
        api.plan_study(
            tmp_path / "out",
            upstream="hubert_tiny",
            downstream="ks,er",
            learning_rates={"kss": 0.1},
        )


def test_flags_that_concern_other_scenarios_are_kept_with_a_warning(
    planned: Path, tmp_path: Path, capsys
) -> None:
    words = ["study", str(tmp_path / "other"), *START, "--scenario", "a"]
    assert main([*words, "--alphas", "0.5", "--balancer", "pcgrad"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("--alphas") == shown.count("--balancer") == 1
    settings = read_settings(tmp_path / "other")
    assert settings is not None and settings.plan.alphas == (0.5,)
    assert settings.joint_options == ("--balancer", "pcgrad")


def test_the_number_of_jobs_is_kept(planned: Path) -> None:
    assert main(["study", str(planned), "--jobs", "3"]) == 0
    assert api.plan_study(planned).jobs == 3


def test_a_damaged_file_is_reported(tmp_path: Path, capsys) -> None:
    (tmp_path / "study.json").write_text("{}")
    assert main(["study", str(tmp_path), "--verbose"]) == 2
    assert "[file-malformed]" in capsys.readouterr().err


def test_the_table_of_nine_tasks_fits_into_80_columns(tmp_path: Path) -> None:
    words = ["study", str(tmp_path), "-u", "hubert", "-d", "all", "--status"]
    done = subprocess.run(
        [sys.executable, "-m", "s3prl_mtl", *words],
        capture_output=True,
        text=True,
        check=True,
        env={**environment(tmp_path, tmp_path), "COLUMNS": "80"},
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.findall(r"\d+|waiting", lines[-1]) == ["28", "28", "waiting"]


SMALL = [
    *("-u", "hubert_tiny", "-c", "demo", "--frozen_config", "none", "--device", "cpu"),
    *("-o", "runner.test_first=false,,runner.save_step=1"),
]


def results(out: Path) -> dict[str, object]:
    """The results of every run that is done."""
    return {
        str(path.parent.relative_to(out)): read_results(path.parent)
        for path in sorted(out.rglob("finished.json"))
    }


@pytest.mark.slow
def test_a_study_that_was_killed_ends_with_the_same_results(
    tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    variables = environment(tiny_corpus, manifest_cache)
    words = [*SMALL, "-d", "ks,er", "--scenario", "b1", "--steps", "3", "--jobs", "2"]
    start = [sys.executable, "-m", "s3prl_mtl", "study"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Started([*start, str(whole), *words], tmp_path / "whole.txt", variables) as study:
        assert study.wait(900) == 0, study.text()
    assert len(results(whole)) == 3
    # In a run with a frozen encoder, and in the joint one.
    for name in ("a/seed0/er", "b1/seed0"):
        with Started([*start, str(killed), *words], tmp_path / "killed.txt", variables) as study:
            until(
                lambda n=name: (killed / n / "states-1.ckpt").exists(),  # type: ignore[misc]
                study.text,
                seconds=300,
            )
    with Started([*start, str(killed), *words], tmp_path / "last.txt", variables) as study:
        assert study.wait(900) == 0, study.text()
    assert results(killed) == results(whole)


@pytest.mark.slow
def test_the_scripts_of_the_paper_train_every_scenario(
    tmp_path: Path, tiny_corpus: Path, manifest_cache: Path
) -> None:
    out = tmp_path / "out"
    words = ["bash", str(ROOT / "run_scripts/reproduce_paper.sh"), str(out), str(tiny_corpus)]
    words += ["-d", "ks,ic,er", *SMALL, "--steps", "1", "--jobs", "2", "--leave_out", "ic"]
    variables = environment(tiny_corpus, manifest_cache)
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    with Started(words, tmp_path / "output.txt", variables) as scripts:
        assert scripts.wait(900) == 0, scripts.text()
    settings = read_settings(out)
    assert settings is not None
    assert set(results(out)) == {run.name for run in settings.plan.runs}
    for run in settings.plan.runs:
        assert set(run.tasks) <= set(results(out)[run.name])  # type: ignore[call-overload]
    # Each script ends with the report: the last one with that of the whole study.
    table = read_study(out).results
    assert not table.missing
    row = Row("b2", "ic")
    for column in table.columns:
        mark = table.mark(row, column)
        assert (mark is None) == (
            column.task == "ic" or table.cell(row, column) == table.cell(Row("b1"), column)
        )
    assert 'id="selection"' in (out / "report.html").read_text()
    assert scripts.text().rstrip().endswith(str(out / "report.html"))
