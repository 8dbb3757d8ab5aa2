"""Write the folder of a study as `study` and its runs do, with chosen numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from s3prl_mtl.study.plan import Plan
from s3prl_mtl.study.record import adopt
from s3prl_mtl.study.settings import StudySettings, write_settings
from s3prl_mtl.tracking.recorder import Recorder, Report
from s3prl_mtl.training.run_dir import mark_finished

METRICS = {"ks": "acc", "er": "acc", "asr": "wer", "sd": "der"}
STEPS = 20
Values = Mapping[tuple[str, str | None, str, int], float]
"""By scenario, left-out task, task and seed."""


def write_study(
    folder: Path,
    tasks: Sequence[str],
    seeds: Sequence[int],
    values: Values,
    alphas: Sequence[float] = (),
) -> Path:
    """Write `study.json`, and a finished run for each run with a value for all of its tasks.

    With alphas, the study has scenario d, whose values are those of c times alpha.
    """
    scenarios = ("a", "b1", "b2", "c", *(["d"] if alphas else []))
    plan = Plan(specs=tuple(tasks), scenarios=scenarios, seeds=tuple(seeds), alphas=tuple(alphas))
    write_settings(StudySettings(plan=plan, upstream="hubert_tiny", steps=STEPS), folder)
    for run in plan.runs:
        scenario = "c" if run.scenario == "d" else run.scenario
        numbers = {
            task: value * (run.alpha or 1)
            for task in run.tasks
            if (value := values.get((scenario, run.left_out, task, run.seed))) is not None
        }
        if len(numbers) == len(run.tasks):
            write_run(folder / run.name, numbers, run.seed)
    adopt(plan.runs, folder)
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
    if steps == STEPS:
        mark_finished(folder, steps)
    return folder
