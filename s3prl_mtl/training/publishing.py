"""Gather the metrics of all ranks and write them on the first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.best import SUFFIX
from s3prl_mtl.checkpoint.contents import TaskCheckpoint
from s3prl_mtl.tasks.ctc import ZEROED
from s3prl_mtl.tracking.heat_maps import heat_maps
from s3prl_mtl.tracking.progress import total_loss
from s3prl_mtl.tracking.recorder import GRADIENTS, Recorder, Report
from s3prl_mtl.training.conflicts import Gramians
from s3prl_mtl.training.rates import rates
from s3prl_mtl.training.reporting import report_layer_weights, report_split
from s3prl_mtl.training.state import RunState
from s3prl_mtl.training.task import merge_records

logger = logging.getLogger(__name__)

AVERAGED = 20
"""Measurements of the gradients that the figure shows the mean of: one batch is noisy."""


class Publisher:
    """Write the metrics of a run, and the best checkpoints.

    Every rank must call the methods; the first rank has the recorder.

    Args:
        folder: the run directory.
        state: of the run; gives the contents of checkpoints.
    """

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder = folder
        self.run = state.run
        self.state = state
        self._gramians: deque[Gramians] = deque(maxlen=AVERAGED)

    def publish_training(self, recorder: Recorder | None, losses: Mapping[str, float]) -> None:
        """Write the experts' training metrics since the last call, the losses and the counts.

        Args:
            recorder: None on all ranks but the first.
            losses: of each task in the last step.
        """
        step = self.run.step
        reports = []
        for name, task in self.run.tasks.items():
            gathered = self.run.groups[name].gather(task.take_records())
            if gathered is not None:
                records, batch_ids = merge_records(gathered)
                if not batch_ids:
                    continue  # the task was dropped from every step since then
                total = task.stream.epoch_batches
                reports.append(
                    report_split(task, task.train_split, records, step, batch_ids, total)
                )
        collected = self.run.world.gather(reports)
        if recorder is None or collected is None:
            return
        for report in sorted(chain(*collected), key=lambda r: self.run.names.index(r.task)):
            recorder.write(report)
        balancing = self.state.step.balancer.metrics()
        for metric, value in {**self.run.skips.counts(), **balancing}.items():
            recorder.record("run", "train", metric, value, step)
        combined = total_loss(losses)
        recorder.record("run", "train", "loss", combined, step)
        for part, rate in rates(self.state.step.optimizer).items():
            recorder.record("run", "train", f"lr_{part}" if part else "lr", rate, step)
        recorder.flush()
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        zeroed = {r.task: r.values[ZEROED] for r in chain(*collected) if ZEROED in r.values}
        listed = ", ".join(f"{count:.0f} of {task}" for task, count in zeroed.items())
        ended = f"  CTC loss set to 0: {listed}" if listed else ""
        logger.info("step %d  loss %.3f  (%s)%s", step, combined, shown, ended)

    def publish_conflicts(self, recorder: Recorder | None, gramians: Gramians) -> None:
        """Write the comparison of the tasks' gradients, and draw the last ones as `conflicts.png`.

        Args:
            recorder: None on all ranks but the first.
            gramians: of this step.
        """
        if recorder is None:
            return
        step = self.run.step
        for group in gramians.groups:
            for metric, value in gramians.scalars(group).items():
                recorder.record(GRADIENTS, group, metric, value, step)
        recorder.flush()
        if list(gramians.tasks) != list(self.run.names):
            return  # A task was dropped from the step.
        self._gramians.append(gramians)
        means = {
            group: torch.stack([one.cosines(group) for one in self._gramians]).nanmean(dim=0)
            for group in gramians.groups
        }
        count = len(self._gramians)
        title = f"Cosines of the tasks' gradients, step {step}" + (
            f", mean of {count} measurements" if count > 1 else ""
        )
        tasks = list(gramians.tasks)
        maps = {group: mean.tolist() for group, mean in means.items()}
        recorder.draw("conflicts", heat_maps(maps, tasks, title, limit=1.0), step)
        shares = "  ".join(
            f"{group} {gramians.scalars(group)['conflicting_pairs']:.2f}"
            for group in gramians.groups
        )
        logger.info("step %d  conflicting pairs: %s", step, shares)

    def publish_evaluation(
        self,
        recorder: Recorder | None,
        reports: Sequence[Report],
        keep_best: bool,
        sources: Mapping[str, str],
    ) -> None:
        """Write the reports of an evaluation; an error of writing is raised on all ranks.

        Args:
            recorder: None on all ranks but the first.
            reports: those of the first rank are written.
            keep_best: write the best checkpoints requested by the experts.
            sources: the checkpoint file of each task, written beside its numbers.

        Raises:
            UserError: a checkpoint cannot be written.
        """

        def write() -> None:
            if recorder is None:
                return
            # Checkpoints first: if the disk is full, no metrics have been written yet.
            for report in reports if keep_best else []:
                for file in report.save_names:
                    head = report.head or TaskCheckpoint.capture(self.run.tasks[report.task].expert)
                    best = self.state.weights({report.task: head})
                    checkpoints.save(best, self.folder / report.task / file)
            # Best checkpoints have different layer weights; those of the run are its last.
            if not any(source.endswith(SUFFIX) for source in sources.values()):
                self._write_layer_weights(recorder, next(iter(sources.values()), None))
            for report in reports:
                report.checkpoint = sources.get(report.task)
                recorder.write(report)
                recorder.keep(report)
            recorder.flush()

        self.run.world.run_on_all_ranks(write)

    def _write_layer_weights(self, recorder: Recorder, checkpoint: str | None) -> None:
        step, encoder = self.run.step, self.run.encoder
        layers = report_layer_weights(encoder.featurizer, encoder.upstream.num_hidden_states, step)
        layers.checkpoint = checkpoint
        if layers.scalars:
            recorder.write(layers)
            recorder.keep(layers)
            if checkpoint is None:  # an evaluation logs only the metrics that it was asked for
                shown = " ".join(f"{value:.3f}" for value in layers.values.values())
                logger.info("step %d  weights of the layers: %s", step, shown)
