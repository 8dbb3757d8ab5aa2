"""MultiTaskRunner: one encoder, several experts, one step for all of them."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_mtl import checkpoint as checkpoints
from s3prl_mtl import snapshot
from s3prl_mtl.assembly import (
    build_experts,
    build_upstream,
    load_initial_weights,
    pick_device,
)
from s3prl_mtl.balancing import sum_of_losses
from s3prl_mtl.config import Config, resolve
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.optim import make_optimizer, make_scheduler
from s3prl_mtl.preflight import check_splits
from s3prl_mtl.progress import StepProgress
from s3prl_mtl.randomness import random_state, seed_all, set_random_state
from s3prl_mtl.reporting import report_layer_weights, report_split
from s3prl_mtl.task import Task
from s3prl_mtl.tracking import Results, Tracker
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.yaml_files import write_yaml

logger = logging.getLogger(__name__)


class MultiTaskRunner:
    """Trains and evaluates one upstream on several tasks at once.

    Args:
        config: what `s3prl_mtl.config.build_config` gives, its references filled in or not.
        folder: the run directory; created.
        resume: a checkpoint of the same run to continue from.

    Raises:
        UserError: the upstream, a task, its corpus or the checkpoint is not usable.
    """

    def __init__(
        self,
        config: Config,
        folder: str | Path,
        resume: checkpoints.Checkpoint | None = None,
    ) -> None:
        self.source_config = config
        """With its references, as it is kept beside the weights."""
        config = self.config = resolve(config)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = pick_device(config["device"])
        self.step = 0
        self.skipped_steps = 0
        self.evaluated_step = 0
        self._resumed = resume
        seed_all(config["seed"])

        self.upstream = build_upstream(config, resume).to(self.device)
        self.freeze = bool(config["upstream"]["freeze"])
        if self.freeze:
            self.upstream.requires_grad_(False)
        self.featurizer = Featurizer(self.upstream, config["upstream"]["feature_selection"]).to(
            self.device
        )
        experts = build_experts(config, self.featurizer, self.folder, resume)
        self.tasks = {
            name: Task.from_settings(name, expert.to(self.device), config[name])
            for name, expert in experts.items()
        }
        self.specaug = SpecAugment(**config["specaug"]) if config["specaug"] else None

        if resume is None:
            load_initial_weights(config, self.upstream, self.featurizer, experts)
        self.optimizer = make_optimizer(self._trainable(), config["optimizer"])
        self.scheduler = make_scheduler(
            self.optimizer, config["scheduler"], config["runner"]["total_steps"]
        )
        if resume is not None:
            self.load_state(resume)

    # ------------------------------------------------------------------------- training

    def train(self) -> Results:
        """Train to the last step, evaluating, logging and saving on the way.

        Returns:
            the results of the last evaluation of every split.
        """
        runner = self.config["runner"]
        total = runner["total_steps"]
        check_splits(self.config, self.tasks)
        write_yaml(self.source_config, self.folder / "config.yaml")
        if self._resumed is not None:
            self.continue_training(self._resumed)
            self._resumed = None
        with Tracker(self.folder, resumed_at=self.step) as tracker:
            if runner["test_first"] and self.step == 0:
                self.evaluate(self.splits("test_splits"), tracker)
            if self._evaluation_is_due() and self.evaluated_step < self.step:
                # It failed after this step, and what it needed may have been mended.
                self._evaluate_on_the_way(tracker)
            with StepProgress(self.step, total) as progress:
                while self.step < total:
                    losses = self.train_step()
                    progress.advance(self.step, losses)
                    if self.step % runner["log_step"] == 0 or self.step == total:
                        self._log_training(tracker, losses)
                    if self._evaluation_is_due():
                        self._evaluate_on_the_way(tracker)
                    if self.step % runner["save_step"] == 0 or self.step == total:
                        self.save()
            if runner["test_last"]:
                self.evaluate(self.splits("test_splits"), tracker)
            return tracker.results

    def _evaluation_is_due(self) -> bool:
        runner = self.config["runner"]
        at_an_end = self.step == runner["total_steps"]
        return self.step > 0 and (self.step % runner["eval_step"] == 0 or at_an_end)

    def _evaluate_on_the_way(self, tracker: Tracker) -> None:
        try:
            self.evaluate(self.splits("dev_splits"), tracker, keep_best=True)
        except Exception:
            # What was trained since the last save is worth more than the evaluation.
            logger.error("The evaluation failed: saving what was trained.")
            self.save()
            raise
        self.evaluated_step = self.step

    def train_step(self) -> dict[str, float]:
        """One update from one batch of every task (or several, where gradients accumulate).

        Returns:
            the loss of each task, averaged over the accumulated batches.
        """
        self._set_training(True)
        pieces = self.config["runner"]["gradient_accumulate_steps"]
        totals = dict.fromkeys(self.tasks, 0.0)
        for _ in range(pieces):
            losses = self._forward_all(self._draw_all())
            (sum_of_losses(losses) / pieces).backward()
            for name, loss in losses.items():
                totals[name] += loss.item() / pieces
        self._update()
        self.step += 1
        return totals

    def try_out(self) -> None:
        """One batch of every training and evaluation split, through everything but the update."""
        check_splits(self.config, self.tasks)
        self._set_training(True)
        sum_of_losses(self._forward_all(self._draw_all())).backward()
        self.optimizer.zero_grad(set_to_none=True)
        self._set_training(False)
        with torch.no_grad():
            for name, split in self.splits("dev_splits") + self.splits("test_splits"):
                expert = self.tasks[name].expert
                wavs, *others = next(iter(expert.get_dataloader(split)))
                expert(split, self._features(wavs), *others, records=defaultdict(list))
                logger.info("%s %s: in order", name, split)

    def _draw_all(self) -> dict[str, tuple[list[Any], list[Any]]]:
        """The next batch of every task: its waveforms, and what else the loader gives."""
        batches = {}
        for name, task in self.tasks.items():
            batches[name] = task.stream.next_batch()
            task.batch_ids.append(task.stream.batch - 1)
        return batches

    def _forward_all(self, batches: Mapping[str, tuple[list[Any], list[Any]]]) -> dict[str, Tensor]:
        """One pass of the encoder for all tasks, then each head on its own utterances."""
        wavs = [wav for task_wavs, _ in batches.values() for wav in task_wavs]
        features = self._features(wavs)
        if self.specaug is not None:
            features = self.specaug(features)
        losses = {}
        first = 0
        for name, (task_wavs, others) in batches.items():
            own = features[first : first + len(task_wavs)]
            first += len(task_wavs)
            task = self.tasks[name]
            losses[name] = task.expert(task.train_split, own, *others, records=task.records)
        return losses

    def _features(self, wavs: Sequence[Any]) -> list[Tensor]:
        """The features of utterances of any tasks, float32 (frames_i, D) each."""
        waveforms = [torch.as_tensor(wav, dtype=torch.float32).to(self.device) for wav in wavs]
        trains_encoder = torch.is_grad_enabled() and not self.freeze
        with self._autocast():
            with torch.set_grad_enabled(trains_encoder):
                hidden_states = self.upstream(waveforms)
            # The heads run in float32: CTC and AM-softmax lose too much below it.
            return [feature.float() for feature in self.featurizer(hidden_states)]

    def _update(self) -> None:
        norm = nn.utils.clip_grad_norm_(
            self._trainable(), self.config["runner"]["gradient_clipping"]
        )
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped_steps += 1
            logger.warning(
                "The gradient norm of step %d is %s: the step is skipped (%d so far).",
                self.step + 1,
                norm.item(),
                self.skipped_steps,
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()

    def _log_training(self, tracker: Tracker, losses: Mapping[str, float]) -> None:
        for task in self.tasks.values():
            records, batch_ids = task.take_records()
            batches = task.stream.epoch_batches
            report_split(tracker, task, task.train_split, records, self.step, batch_ids, batches)
        tracker.record("run", "train", "loss", sum(losses.values()), self.step)
        tracker.record("run", "train", "lr", self.optimizer.param_groups[0]["lr"], self.step)
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        logger.info("step %d  loss %.3f  (%s)", self.step, sum(losses.values()), shown)

    # ----------------------------------------------------------------------- evaluation

    def evaluate(
        self, splits: Iterable[tuple[str, str]], tracker: Tracker, keep_best: bool = False
    ) -> None:
        """Evaluate splits of tasks with the weights as they are.

        Args:
            splits: pairs of task and split.
            tracker: takes the metrics; `results.json` then holds them.
            keep_best: write `<task>/<split>-best.ckpt` where the expert asks for it.

        Raises:
            UserError: the run has no such task.
        """
        report_layer_weights(tracker, self.featurizer, self.upstream.num_hidden_states, self.step)
        for name, split in splits:
            if name not in self.tasks:
                raise UserError(
                    f"The run has no task {name!r}.",
                    where="-t",
                    fix=nearest(name, list(self.tasks)),
                )
            task = self.tasks[name]
            records, batches = self._records_of(task, split)
            values, save_names = report_split(
                tracker, task, split, records, self.step, list(range(batches)), batches
            )
            tracker.keep(name, split, values)
            shown = "  ".join(f"{metric} {value:.4f}" for metric, value in values.items())
            logger.info("step %d  %s %s  %s", self.step, name, split, shown)
            for file in save_names if keep_best else []:
                checkpoints.save(self.task_state(task), self.folder / name / file)

    @torch.no_grad()
    def _records_of(self, task: Task, split: str) -> tuple[dict[str, list[Any]], int]:
        """What an expert recorded over a split, and of how many batches."""
        self._set_training(False)
        records: dict[str, list[Any]] = defaultdict(list)
        batches = 0
        for wavs, *others in task.expert.get_dataloader(split):
            features = self._features(wavs)
            # s3prl numbers the batches of an evaluation for experts that want it.
            number = {"batch_id": batches} if task.takes_batch_id else {}
            task.expert(split, features, *others, records=records, **number)
            batches += 1
        if batches == 0:
            raise UserError(f"{task.name}: the split {split!r} has no utterances.")
        return records, batches

    # ---------------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """Write `states-<step>.ckpt`, and only then delete the ones that are too many."""
        path = self.folder / f"states-{self.step}.ckpt"
        checkpoints.save(self.state(), path)
        checkpoints.keep_newest(self.folder, self.config["runner"]["max_keep"])
        return path

    def state(self) -> checkpoints.Checkpoint:
        """All that the run needs to go on as if it had not been interrupted."""
        state = self._weights(self.tasks.values())
        state["Optimizer"] = self.optimizer.state_dict()
        state["Scheduler"] = self.scheduler.state_dict() if self.scheduler else None
        state["Random"] = random_state()
        state["EvaluatedStep"] = self.evaluated_step
        for name, task in self.tasks.items():
            state["Tasks"][name]["Stream"] = task.stream.state_dict()
        return state

    def task_state(self, task: Task) -> checkpoints.Checkpoint:
        """The weights that evaluate one task: the encoder's and its head's."""
        return self._weights([task])

    def _weights(self, tasks: Iterable[Task]) -> checkpoints.Checkpoint:
        return snapshot.weights(
            self.source_config, self.step, self.skipped_steps, self.upstream, self.featurizer, tasks
        )

    def load_state(self, state: checkpoints.Checkpoint) -> None:
        """Take over the step and the weights."""
        self.step = state["Step"]
        self.skipped_steps = state["SkippedSteps"]
        snapshot.restore_weights(state, self.upstream, self.featurizer, self.tasks.values())

    def continue_training(self, state: checkpoints.Checkpoint) -> None:
        """Put optimizer, schedule, batches and all chance where the checkpoint left them."""
        self.evaluated_step = state["EvaluatedStep"]
        self.optimizer.load_state_dict(state["Optimizer"])
        if self.scheduler is not None and state["Scheduler"] is not None:
            self.scheduler.load_state_dict(state["Scheduler"])
        for name, task in self.tasks.items():
            task.stream.load_state_dict(state["Tasks"][name]["Stream"])
        set_random_state(state["Random"])

    # ------------------------------------------------------------------------- the rest

    def splits(self, kind: str) -> list[tuple[str, str]]:
        """Pairs of task and split: those of `dev_splits` or `test_splits` of every task."""
        return [(name, split) for name, task in self.tasks.items() for split in getattr(task, kind)]

    def _trainable(self) -> list[nn.Parameter]:
        modules = [self.upstream, self.featurizer, *(task.expert for task in self.tasks.values())]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def _set_training(self, training: bool) -> None:
        self.upstream.train(training and not self.freeze)
        self.featurizer.train(training)
        for task in self.tasks.values():
            task.expert.train(training)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config["precision"] == "bf16"
        )
