"""Where the numbers of all ranks come together and are written: on the first of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.contents import head_entry
from s3prl_mtl.distributed.world import Group, World
from s3prl_mtl.tracking.tracker import Report, Tracker
from s3prl_mtl.training.reporting import report_layer_weights, report_split
from s3prl_mtl.training.state import RunState
from s3prl_mtl.training.task import Task, put_together

logger = logging.getLogger(__name__)


class Publisher:
    """Writes what a run has to say: metrics, and the best checkpoints that they earn.

    Every rank calls its methods; the first one has the tracker.

    Args:
        folder: the run directory.
        world: all ranks.
        groups: the ranks that share each task of this rank.
        tasks: those of this rank.
        run_state: what checkpoints hold.
        names: the tasks of the run, in the order in which they are shown.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        groups: Mapping[str, Group],
        tasks: Mapping[str, Task],
        run_state: RunState,
        names: Sequence[str],
    ) -> None:
        self.folder = folder
        self.world = world
        self.groups = groups
        self.tasks = tasks
        self.run_state = run_state
        self.names = list(names)

    def publish_training(
        self, tracker: Tracker | None, step: int, losses: Mapping[str, float]
    ) -> None:
        """What the experts recorded since the last time, the losses of a step, the counts.

        Args:
            tracker: None on all ranks but the first.
            step: steps taken.
            losses: of each task in the last one.
        """
        reports = []
        for name, task in self.tasks.items():
            gathered = self.groups[name].gather(task.take_records())
            if gathered is not None:
                records, batch_ids = put_together(gathered)
                if not batch_ids:
                    continue  # the task was left out of every step since then
                total = task.stream.epoch_batches
                reports.append(
                    report_split(task, task.train_split, records, step, batch_ids, total)
                )
        collected = self.world.gather(reports)
        if tracker is None or collected is None:
            return
        for report in sorted(chain(*collected), key=lambda r: self.names.index(r.task)):
            tracker.write(report)
        for metric, value in self.run_state.skips.counts().items():
            tracker.record("run", "train", metric, value, step)
        total_loss = math.fsum(loss for loss in losses.values() if math.isfinite(loss))
        rate = self.run_state.optimizer.param_groups[0]["lr"]
        tracker.record("run", "train", "loss", total_loss, step)
        tracker.record("run", "train", "lr", rate, step)
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        logger.info("step %d  loss %.3f  (%s)", step, total_loss, shown)

    def publish_evaluation(
        self, tracker: Tracker | None, step: int, reports: Sequence[Report], keep_best: bool
    ) -> None:
        """The reports of an evaluation; if one cannot be written, all ranks raise that.

        Args:
            tracker: None on all ranks but the first.
            step: of the weights.
            reports: those of the first rank are written.
            keep_best: write the checkpoints that they earned.

        Raises:
            UserError: a checkpoint cannot be written.
        """

        def write() -> None:
            if tracker is None:
                return
            # First what may not fit on the disk: a number that was written is not taken back.
            for report in reports if keep_best else []:
                for file in report.save_names:
                    head = report.head or head_entry(self.tasks[report.task])
                    best = self.run_state.weights(step, {report.task: head})
                    checkpoints.save(best, self.folder / report.task / file)
            self._write_layer_weights(tracker, step)
            for report in reports:
                tracker.write(report)
                tracker.keep(report)

        self.world.run_on_all_ranks(write)

    def _write_layer_weights(self, tracker: Tracker, step: int) -> None:
        encoder = self.run_state.encoder
        layers = report_layer_weights(encoder.featurizer, encoder.upstream.num_hidden_states, step)
        if layers.scalars:
            tracker.write(layers)
            tracker.keep(layers)
            shown = " ".join(f"{value:.3f}" for value in layers.values.values())
            logger.info("step %d  weights of the layers: %s", step, shown)
