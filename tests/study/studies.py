"""Write the folder of a study as `study` and its runs do, with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from s3prl_mtl.tracking.recorder import Recorder, Report

METRICS = {"ks": "acc", "er": "acc", "asr": "wer", "sd": "der"}
STEPS = 20
Values = Mapping[tuple[str, str | None, str, int], float]
"""By scenario, left-out task, task and seed."""


def planned_runs(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The runs of scenarios a, b1, b2 and c."""
    runs: list[dict[str, Any]] = []

    def add(name: str, scenario: str, own: Sequence[str], left_out: str | None, seed: int) -> None:
        entry = {"name": name, "scenario": scenario, "tasks": list(own), "left_out": left_out}
        runs.append({**entry, "alpha": None, "seed": seed, "needs": []})

    for seed in seeds:
        for task in tasks:
            add(f"a/seed{seed}/{task}", "a", [task], None, seed)
        add(f"b1/seed{seed}", "b1", tasks, None, seed)
        for task in tasks:
            others = [other for other in tasks if other != task]
            add(f"b2/seed{seed}/without-{task}", "b2", others, task, seed)
        for task in tasks:
            add(f"c/seed{seed}/{task}", "c", [task], task, seed)
    return runs


def write_study(folder: Path, tasks: Sequence[str], seeds: Sequence[int], values: Values) -> Path:
    """Write `study.json`, and a finished run for each run with a value for all of its tasks."""
    runs = planned_runs(tasks, seeds)
    study = {
        "format": 1,
        "upstream": "hubert_tiny",
        "tasks": list(tasks),
        "seeds": list(seeds),
        "alphas": [],
        "steps": STEPS,
        "runs": runs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    for run in runs:
        numbers = {
            task: values.get((run["scenario"], run["left_out"], task, run["seed"]))
            for task in run["tasks"]
        }
        if all(value is not None for value in numbers.values()):
            write_run(folder / run["name"], numbers, run["seed"])  # type: ignore[arg-type]
    return folder


def write_run(folder: Path, values: Mapping[str, float], seed: int = 0, steps: int = STEPS) -> Path:
    """A run that reached `steps` of `STEPS`, with the test results of `values`."""
    folder.mkdir(parents=True)
    blocks = {
        task: {
            "package": "s3prl-mtl",
            "train_split": "train",
            "dev_splits": ["dev"],
            "test_splits": ["test"],
            "downstream_expert": {"datarc": {"test_fold": "fold1"}},
        }
        for task in values
    }
    config = {"downstream": list(values), "seed": seed, "runner": {"total_steps": STEPS}, **blocks}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "versions.json").write_text(json.dumps({"s3prl-mtl": "0.1.0", "torch": "2.13.0"}))
    names = list(values)
    with Recorder(folder) as recorder:
        for step in range(5, steps + 1, 5):
            for task, value in values.items():
                metric, part = METRICS.get(task, "acc"), value * step / STEPS
                recorder.record(task, "train", metric, part, step)
                recorder.record(task, "train", "loss", 2 - step / STEPS, step)
                recorder.write(Report(task, "dev", [(metric, part, step), ("loss", 1.5, step)]))
            weights = [(f"layer_{layer}", 0.25, step) for layer in range(4)]
            layers = Report("featurizer", "layer_weights", weights)
            recorder.write(layers)
            recorder.keep(layers)
            if len(names) > 1:
                recorder.record("gradients", "all", "conflicting_pairs", 1.0, step)
                for number, first in enumerate(names):
                    for second in names[number + 1 :]:
                        recorder.record("gradients", "all", f"cosine_{first}-{second}", -0.2, step)
        for task, value in values.items() if steps == STEPS else ():
            numbers = [(METRICS.get(task, "acc"), value, steps)]
            report = Report(task, "test", numbers, checkpoint=f"{task}/dev-best.ckpt")
            recorder.write(report)
            recorder.keep(report)
    return folder
