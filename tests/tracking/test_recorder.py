"""`metrics.jsonl` and `results.json` of a run, and what trackers get."""

from __future__ import annotations

import json
from pathlib import Path

from s3prl_mtl.tracking.recorder import Recorder, Report, read_metrics, read_results
from tests.mistakes import user_error


def test_a_value_is_written_to_both_files(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        report = Report("asr", "dev-clean")
        report.add_scalar("asr/dev-clean-wer", 0.25, global_step=3)
        recorder.write(report)
        recorder.keep(report)
    assert list(read_metrics(tmp_path)) == [
        {"step": 3, "task": "asr", "split": "dev-clean", "metric": "wer", "value": 0.25}
    ]
    assert read_results(tmp_path) == {"asr": {"dev-clean": {"wer": 0.25}}}


def test_the_prefix_of_a_tag_does_not_matter():
    report = Report("er", "dev")
    report.add_scalar("emotion-fold1/dev-acc", 0.5, global_step=1)
    assert report.values == {"acc": 0.5}


def test_the_results_are_those_of_the_last_evaluation(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        recorder.keep(Report("ks", "test", [("acc", 0.1, 1)]))
        recorder.keep(Report("ks", "test", [("acc", 0.2, 1)]))
        recorder.keep(Report("ks", "dev", [("acc", 0.3, 1)]))
    with Recorder(tmp_path) as recorder:
        recorder.keep(Report("er", "dev", [("acc", 0.4, 1)]))
    assert read_results(tmp_path) == {
        "ks": {"test": {"acc": 0.2}, "dev": {"acc": 0.3}},
        "er": {"dev": {"acc": 0.4}},
    }


def test_a_resumed_run_drops_the_records_of_later_steps(tmp_path: Path):
    with Recorder(tmp_path, resumed_at=0) as recorder:
        for step in (1, 2, 3):
            recorder.record("ks", "train", "loss", float(step), step)
    with Recorder(tmp_path, resumed_at=2) as recorder:
        recorder.record("ks", "train", "loss", 30.0, 3)
    values = [(entry["step"], entry["value"]) for entry in read_metrics(tmp_path)]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_an_incomplete_last_line_is_ignored(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        recorder.record("ks", "train", "loss", 1.0, 1)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 2, "task"')
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1]


def test_a_record_after_an_incomplete_line_is_on_its_own_line(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        recorder.record("ks", "train", "loss", 1.0, 1)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 2, "task"')
    with Recorder(tmp_path) as recorder:
        recorder.record("ks", "test", "acc", 0.5, 1)
    assert [entry["metric"] for entry in read_metrics(tmp_path)] == ["loss", "acc"]


def test_a_damaged_line_is_named(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with user_error("file-malformed", where=r"metrics\.jsonl, line 2$"):
        list(read_metrics(tmp_path))


def test_a_new_run_starts_without_records(tmp_path: Path):
    with Recorder(tmp_path, resumed_at=0) as recorder:
        recorder.record("ks", "test", "acc", 0.1, 0)
    with Recorder(tmp_path, resumed_at=0) as recorder:
        recorder.record("ks", "test", "acc", 0.2, 0)
    assert [entry["value"] for entry in read_metrics(tmp_path)] == [0.2]


def test_a_non_finite_value_is_written_as_valid_json(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        recorder.record("ks", "train", "loss", float("nan"), 1)
        recorder.keep(Report("ks", "train", [("loss", float("inf"), 1), ("acc", 0.5, 1)]))
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda text: 1 / 0)["value"] is None
    assert read_results(tmp_path) == {"ks": {"train": {"acc": 0.5}}}


def test_a_run_can_be_evaluated_while_it_trains_without_losing_values(tmp_path: Path):
    with Recorder(tmp_path, resumed_at=0) as training:
        training.record("ks", "train", "loss", 1.0, 1)
        with Recorder(tmp_path) as evaluating:
            evaluating.record("ks", "test", "acc", 0.5, 1)
            evaluating.keep(Report("ks", "test", [("acc", 0.5, 1)]))
        training.record("ks", "train", "loss", 0.5, 2)
        training.keep(Report("ks", "dev", [("acc", 0.6, 2)]))
    assert [(e["step"], e["split"]) for e in read_metrics(tmp_path)] == [
        (1, "train"),
        (1, "test"),
        (2, "train"),
    ]
    assert read_results(tmp_path) == {"ks": {"test": {"acc": 0.5}, "dev": {"acc": 0.6}}}


def test_an_evaluation_that_is_repeated_is_recorded_once(tmp_path: Path):
    with Recorder(tmp_path, resumed_at=0) as recorder:
        recorder.record("ks", "train", "loss", 1.0, 2)
        recorder.record("ks", "dev", "acc", 0.5, 1)
        recorder.record("ks", "dev", "acc", 0.6, 2)
    with Recorder(tmp_path, resumed_at=2, reevaluate=[("ks", "dev")]) as recorder:
        recorder.record("ks", "dev", "acc", 0.7, 2)
    noted = [(e["split"], e["step"], e["value"]) for e in read_metrics(tmp_path)]
    assert noted == [("train", 2, 1.0), ("dev", 1, 0.5), ("dev", 2, 0.7)]
