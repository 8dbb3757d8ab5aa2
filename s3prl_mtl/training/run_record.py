"""Read the folder of a run for reports and model cards."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from s3prl_mtl.data.corpus_report import CorpusSizes
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tasks.metric import Metric
from s3prl_mtl.tracking.recorder import FEATURIZER, GRADIENTS, read_metrics, read_results
from s3prl_mtl.tracking.results_table import Result, read_run
from s3prl_mtl.tracking.trackers import flatten
from s3prl_mtl.training.reporting import stated_conditions
from s3prl_mtl.training.run_dir import CORPORA, read_finished

logger = logging.getLogger(__name__)

AVERAGED = 20
"""The last comparisons of gradients, whose mean is shown: one of them is noisy."""

NOT_STARTED = "not started"
"""The problem of a run without records."""

Series = dict[int, float]
"""Values by step."""


@dataclass(frozen=True)
class RunRecord:
    """A run: its settings and everything that it logged.

    Args:
        folder: of the run; it may not exist yet.
    """

    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        path = self.folder / "config.yaml"
        return read_yaml(path, str(path)) if path.is_file() else {}

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Of the packages at its last start; empty for runs of earlier versions."""
        path = self.folder / "versions.json"
        if not path.is_file():
            return {}
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def corpora(self) -> Mapping[str, CorpusSizes]:
        """The corpus of each task; empty for runs of earlier versions."""
        path = self.folder / CORPORA
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {task: CorpusSizes.from_plain(sizes) for task, sizes in found.items()}

    @property
    def tasks(self) -> list[str]:
        return list(self.config.get("downstream") or [])

    @property
    def problem(self) -> str | None:
        """Why the run has no final results; None if it has."""
        if not (self.folder / "metrics.jsonl").is_file():
            return NOT_STARTED
        if read_finished(self.folder) is None:
            return f"not finished, at step {self.last_step} of {self.total_steps}"
        if not self.results:
            return "not evaluated after training"
        return None

    @property
    def total_steps(self) -> int | None:
        runner = self.config.get("runner")
        total = runner.get("total_steps") if isinstance(runner, Mapping) else None
        return total if isinstance(total, int) else None

    @cached_property
    def last_step(self) -> int:
        return max((entry["step"] for entry in self._entries), default=0)

    @cached_property
    def results(self) -> list[Result]:
        """The headline metrics on the test splits after training."""
        found = read_run(self.folder, config=self.config)
        return [result for result in found if result.last.step > 0 or not self.total_steps]

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        return list(read_metrics(self.folder))

    @cached_property
    def _series(self) -> dict[tuple[str, str, str], Series]:
        """The finite values that the weights in training had, by task, split and metric."""
        series: dict[tuple[str, str, str], Series] = {}
        for entry in self._entries:
            value = entry["value"]
            if value is not None and math.isfinite(value) and not entry.get("checkpoint"):
                key = (entry["task"], entry["split"], entry["metric"])
                series.setdefault(key, {})[entry["step"]] = value
        return series

    def block(self, task: str) -> Mapping[str, Any]:
        """The settings of a task."""
        block = self.config.get(task)
        return block if isinstance(block, Mapping) else {}

    def training(self, task: str, metric: str) -> Series:
        """A metric of a task on its training batches."""
        split = str(self.block(task).get("train_split", "train"))
        return self._series.get((task, split, metric), {})

    def dev(self, task: str, metric: str) -> Series:
        """A metric of a task on its first dev split that was evaluated."""
        for split in self.block(task).get("dev_splits") or ["dev"]:
            if (task, split, metric) in self._series:
                return self._series[task, split, metric]
        return {}

    def metric(self, task: str) -> Metric | None:
        """The first headline metric of a task among those with a result."""
        return next((result.metric for result in self.results if result.task == task), None)

    @cached_property
    def layer_weights(self) -> dict[int, float]:
        """The last weights of the hidden states, by layer; 0 is the input of the first one."""
        weights = read_results(self.folder).get(FEATURIZER, {}).get("layer_weights", {})
        return {int(name.removeprefix("layer_")): value for name, value in weights.items()}

    @property
    def gradient_groups(self) -> list[str]:
        """The groups of layers whose gradients were compared (`--log_conflicts`)."""
        return list(dict.fromkeys(split for task, split, _ in self._series if task == GRADIENTS))

    def gradient_metric(self, group: str, metric: str) -> float | None:
        """The mean of the last comparisons of gradients; None if it was not logged."""
        values = list(self._series.get((GRADIENTS, group, metric), {}).values())[-AVERAGED:]
        return math.fsum(values) / len(values) if values else None

    def cosines(self, group: str) -> list[list[float | None]]:
        """The cosine of the gradients of each pair of tasks, (tasks, tasks)."""
        tasks = self.tasks
        pairs = {
            (a, b): self.gradient_metric(group, f"cosine_{a}-{b}")
            for a, b in combinations(tasks, 2)
        }
        return [[pairs.get((a, b), pairs.get((b, a))) for b in tasks] for a in tasks]

    def conditions(self, task: str) -> str:
        """What the results of a task depend on, as its expert states it; "" if it does not.

        An evaluation may have had other settings than the run: then both are named.
        """
        numbers = [result.last for result in self.results if result.task == task]
        found = [
            self._conditions_of_run(task) if number.conditions is None else number.conditions
            for number in numbers
        ]
        return "; ".join(dict.fromkeys(found or [self._conditions_of_run(task)]))

    def _conditions_of_run(self, task: str) -> str:
        block = self.block(task)
        try:
            expert = load_task(task, block.get("package"), folder=block.get("folder"))
        except UserError as problem:  # the package may have been uninstalled since the run
            logger.warning("%s", problem)
            return ""
        return stated_conditions(expert, block.get("downstream_expert") or {})


def flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings of a config as dotted names and texts."""
    for name, value in flatten(settings):
        yield name, "" if value is None else str(value)


def common_settings(
    runs: Sequence[Mapping[str, str]],
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The settings that all runs share, and for each run the others."""
    first = runs[0] if runs else {}
    shared = {k: v for k, v in first.items() if all(run.get(k) == v for run in runs)}
    return shared, [{k: v for k, v in run.items() if k not in shared} for run in runs]
