"""What TensorBoard, CSV files, Weights & Biases and MLflow hold of a run."""

from __future__ import annotations

import csv
import json
import logging
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s3prl_mtl.registry.plugins import discover_trackers
from s3prl_mtl.tracking.recorder import Recorder, Report, read_metrics
from s3prl_mtl.tracking.trackers import (
    BUILT_IN,
    Csv,
    TrackedRun,
    Tracker,
    find_trackers,
    flatten,
    kept_id,
    start_trackers,
)
from tests.launcher import until
from tests.mistakes import user_error

NO_ROUTE = "no route to host"

CONFIG = {"seed": 3, "runner": {"total_steps": 4}, "balancer": {"name": "sum"}}


def take_steps(folder: Path, names: str, first: int, last: int, value: float = 1.0) -> None:
    """Two numbers of each step after the first; at the end a figure and a result."""
    trackers = start_trackers(names, TrackedRun(folder, CONFIG, resumed_at=first))
    with Recorder(folder, first, trackers=trackers) as recorder:
        for step in range(first + 1, last + 1):
            recorder.record("ks", "train", "loss", value * step, step)
            recorder.record("run", "train", "loss", math.nan if step == 2 else 0.5, step)
        recorder.draw("conflicts", Image.new("RGB", (4, 4)), last)
        recorder.keep(Report("ks", "test", [("accuracy", 0.75, last)]))


def run_and_resume(folder: Path, names: str) -> None:
    """Three steps, of which the last is lost; then the steps 3 and 4."""
    folder.mkdir()
    take_steps(folder, names, 0, 3)
    take_steps(folder, names, 2, 4, value=10.0)


EXPECTED = {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}


def test_tensorboard_has_curves_figure_config_and_results(tmp_path: Path):
    run_and_resume(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {event.step: event.value for event in events.Scalars("ks/train-loss")} == EXPECTED
    assert len(events.Scalars("ks/train-loss")) == 4
    assert "conflicts" in events.Tags()["images"]
    (config, *_), (results, *_) = (
        events.Tensors(f"{name}/text_summary") for name in ("config", "results")
    )
    assert b"total_steps: 4" in config.tensor_proto.string_val[0]
    assert b"| ks/test-accuracy | 0.75 |" in results.tensor_proto.string_val[0]


def test_csv_files_have_every_number_once(tmp_path: Path):
    run_and_resume(tmp_path / "run", "csv")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "ks/train-loss"}
    assert losses == EXPECTED and len(rows) == 8
    (undefined,) = (r for r in rows if r["name"] == "run/train-loss" and r["step"] == "2")
    assert undefined["value"] == ""
    assert (tmp_path / "run" / "results.csv").read_text().split() == [
        "name,value",
        "ks/test-accuracy,0.75",
    ]


def test_an_evaluation_appends_to_the_csv_file(tmp_path: Path):
    take_steps(tmp_path, "csv", 0, 2)
    with Recorder(tmp_path, trackers=start_trackers("csv", TrackedRun(tmp_path))) as recorder:
        recorder.record("ks", "test", "accuracy", 0.5, 1)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "1", "2", "2", "1"]


def test_a_row_that_a_crash_cut_short_is_dropped(tmp_path: Path):
    take_steps(tmp_path, "csv", 0, 2)
    metrics = tmp_path / "metrics.csv"
    for resumed_at, steps in ((None, ["1", "1", "2", "2"]), (1, ["1", "1"])):
        with metrics.open("a") as file:
            file.write("12")  # of 123,ks/train-loss,...
        run = TrackedRun(tmp_path, resumed_at=resumed_at)
        start_trackers("csv", run)["csv"].finish(False)
        with metrics.open(newline="") as file:
            assert [row["step"] for row in csv.DictReader(file)] == steps


def wandb_records(folder: Path) -> list[Any]:
    """The records of the transaction logs that `wandb sync` sends, the older logs first.

    A log is that of LevelDB: a header of 7 bytes, then blocks of 32 KiB; a chunk has its checksum
    (4 bytes), length (2) and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto import wandb_internal_pb2

    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content = path.read_bytes()
        place, data = 7, b""
        while place + 7 <= len(content):
            if 32_768 - place % 32_768 < 7:
                place += 32_768 - place % 32_768
                continue
            length, kind = struct.unpack_from("<HB", content, place + 4)
            data += content[place + 7 : place + 7 + length]
            place += 7 + length
            if place > len(content):  # being written
                break
            if kind in (1, 4):
                records.append(wandb_internal_pb2.Record.FromString(data))
                data = b""
    return records


def logged_losses(records: Iterable[Any]) -> dict[int, float]:
    """The loss of `ks` by step."""
    losses: dict[int, float] = {}
    for record in records:
        if not record.HasField("history"):
            continue
        row = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "ks/train-loss" in row:
            losses[row["step"]] = row["ks/train-loss"]
    return losses


@pytest.mark.slow
def test_wandb_continues_one_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_and_resume(tmp_path / "run", "wandb")
    # wandb's own process writes the end of a log after `finish` has returned.
    until(lambda: logged_losses(wandb_records(tmp_path / "run")) == EXPECTED)
    records = wandb_records(tmp_path / "run")
    runs = [record.run for record in records if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.display_name for run in runs} == {"run"}
    settings = {item.key: json.loads(item.value_json) for run in runs for item in run.config.update}
    assert settings["seed"] == 3 and settings["runner"] == {"total_steps": 4}
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert {m.step_metric for m in metrics if m.glob_name == "*"} == {"step"}
    summaries = [record.summary for record in records if record.HasField("summary")]
    updates = {
        (item.key or ".".join(item.nested_key)): item.value_json
        for summary in summaries
        for item in summary.update
    }
    assert updates["ks/test-accuracy"] == "0.75"


@pytest.mark.slow
def test_mlflow_continues_one_run_in_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_and_resume(tmp_path / "run", "mlflow")
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("s3prl-mtl")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["runner.total_steps"] == "4"
    # A point that was taken again comes after the lost one.
    history = client.get_metric_history(found.info.run_id, "ks/train-loss")
    assert {point.step: point.value for point in history} == EXPECTED
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"conflicts-3.png", "conflicts-4.png", "results.json"} <= artifacts
    longer = TrackedRun(tmp_path / "run", {**CONFIG, "runner": {"total_steps": 9}}, resumed_at=4)
    for tracker in start_trackers("mlflow", longer).values():
        tracker.finish(failed=False)
    (settings,) = (tmp_path / "mlruns").rglob("artifacts/config.yaml")
    assert yaml.safe_load(settings.read_text()) == longer.config


def test_several_trackers_get_the_same_numbers(tmp_path: Path):
    take_steps(tmp_path, "tensorboard, csv", 0, 2)
    assert list(tmp_path.glob("events.out.tfevents.*")) and (tmp_path / "metrics.csv").is_file()


def test_a_new_run_in_the_folder_of_an_earlier_one_is_another_one(tmp_path: Path):
    made = iter("abc")

    def identifier(resumed_at: int | None) -> str:
        return kept_id(TrackedRun(tmp_path, {}, resumed_at), "wandb", lambda: next(made))

    assert [identifier(step) for step in (0, 2, None, 0, 4)] == ["a", "a", "a", "b", "b"]


def test_mlflow_begins_a_new_run_where_it_does_not_have_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "here").mkdir()
    take_steps(tmp_path / "here", "mlflow", 0, 1)
    old = (tmp_path / "here" / "mlflow-id.txt").read_text()
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "here")
    take_steps(tmp_path / "there" / "here", "mlflow", 1, 2)
    assert (tmp_path / "there" / "here" / "mlflow-id.txt").read_text() != old
    assert (tmp_path / "there" / "mlruns").is_dir()


def test_a_server_out_of_reach_ends_the_start_and_the_other_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finished: list[bool] = []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Csv, "finish", lambda self, failed: finished.append(failed))
    with user_error("tracker-failed", where="--track mlflow"):
        start_trackers("csv,mlflow", TrackedRun(tmp_path, {}, 0))
    assert finished == [True]


class Unwilling(Tracker):
    """Raises an error of its own at the start."""

    def __init__(self, run: TrackedRun) -> None:
        raise ConnectionError(NO_ROUTE)

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, failed: bool) -> None: ...


def test_an_error_of_any_tracker_at_the_start_is_one_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(BUILT_IN, "unwilling", Unwilling)
    with user_error("tracker-failed", where="--track unwilling"):
        start_trackers("unwilling", TrackedRun(tmp_path))


class Broken(Tracker):
    """Works for one step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step > 1:
            raise ConnectionError(NO_ROUTE)

    def finish(self, failed: bool) -> None:
        raise AssertionError("it was left out before")


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with (
        caplog.at_level(logging.WARNING),
        Recorder(tmp_path, 0, trackers={"broken": Broken(TrackedRun(tmp_path))}) as recorder,
    ):
        for step in range(1, 5):
            recorder.record("ks", "train", "loss", 1.0, step)
    (warning,) = caplog.records
    assert "broken" in warning.getMessage() and NO_ROUTE in warning.getMessage()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with user_error("unknown-name", where="--track csv,tensorbord", fix="'tensorboard'"):
        find_trackers("csv,tensorbord")
    with user_error("conflicting-options", where="--track none,csv"):
        find_trackers("none,csv")


def test_none_tracks_nothing():
    assert find_trackers("none") == {} and discover_trackers() == {}


def test_nested_settings_have_dotted_names():
    assert dict(flatten(CONFIG)) == {"seed": 3, "runner.total_steps": 4, "balancer.name": "sum"}
