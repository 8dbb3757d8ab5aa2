"""Train and evaluate one encoder with several experts."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from s3prl_mtl.balancing import Balancer, GradientBalancer, check_steps, make_balancer
from s3prl_mtl.checkpoint import files as checkpoints
from s3prl_mtl.checkpoint.best import best_files, best_of, name_in_run
from s3prl_mtl.checkpoint.compatibility import warn_of_schedule
from s3prl_mtl.checkpoint.contents import RunCheckpoint
from s3prl_mtl.config import Config, resolve
from s3prl_mtl.data.randomness import seed_all
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.data.task_sampling import tasks_of_steps
from s3prl_mtl.distributed.shares import Placement
from s3prl_mtl.distributed.sync import check_in_sync, resync_parameters
from s3prl_mtl.distributed.world import Group, RankLost, World
from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import write_yaml
from s3prl_mtl.nn import SpecAugment
from s3prl_mtl.optim.factory import make_optimizer, make_scheduler
from s3prl_mtl.registry.task_names import require_in_run
from s3prl_mtl.tracking.progress import StepProgress
from s3prl_mtl.tracking.recorder import Recorder, Results
from s3prl_mtl.tracking.trackers import TrackedRun, find_trackers, start_trackers
from s3prl_mtl.training.build import build_experts, build_upstream, check_layouts
from s3prl_mtl.training.device import pick_device, use_tf32
from s3prl_mtl.training.dry_run import try_splits, try_step
from s3prl_mtl.training.evaluation import Evaluator, Interrupted, share_buffers
from s3prl_mtl.training.initial_weights import load_initial_encoder, load_initial_weights
from s3prl_mtl.training.placement import choose_placement, write_placement
from s3prl_mtl.training.preflight import check_splits
from s3prl_mtl.training.publishing import Publisher
from s3prl_mtl.training.rates import HIGH_RATE, freeze_layers, high_rate, parameter_groups
from s3prl_mtl.training.reporting import undefined_metrics, unscored_error
from s3prl_mtl.training.run import Run
from s3prl_mtl.training.run_dir import write_corpora
from s3prl_mtl.training.signals import Stopped, StopSignals
from s3prl_mtl.training.state import RunState
from s3prl_mtl.training.step import StepReport, TrainingStep
from s3prl_mtl.training.summary import ENCODER, FEATURIZER, Source, part_cells, training_summary
from s3prl_mtl.training.task import Task
from s3prl_mtl.upstreams import Featurizer
from s3prl_mtl.upstreams.shared_encoder import SharedEncoder

logger = logging.getLogger(__name__)


class MultiTaskRunner:
    """Train and evaluate one upstream on several tasks at once.

    Args:
        config: from `s3prl_mtl.config.build_config`, with or without its references resolved.
        folder: the run directory; created if absent. All processes must share it.
        resume: a checkpoint of the same run to resume from.
        world: the processes that train together: `World.join()` under torchrun; by default a
            single process.
        balancer: turns the losses of the tasks into gradients, the same on all ranks; by default
            that of the config.

    Raises:
        UserError: the upstream, a task, its corpus or the checkpoint is not usable, or torchrun
            started several processes and `world` is missing. An error of one rank is raised on
            all ranks.
    """

    def __init__(
        self,
        config: Config,
        folder: str | Path,
        resume: RunCheckpoint | None = None,
        world: World | None = None,
        balancer: Balancer | None = None,
    ) -> None:
        self.source_config = config
        """The config with unresolved references, as stored in checkpoints."""
        settings = self.config = resolve(config)
        self.world = world = world if world is not None else World.alone()
        self.folder = Path(os.path.expanduser(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = world.run_on_all_ranks(lambda: pick_device(settings.device, world.local_rank))
        self.evaluated_step = 0
        self.unscored: dict[tuple[str, str], UserError] = {}
        """Task and split of the last evaluations that could not be scored, with the reason."""
        self._resumed = resume
        self._signals: StopSignals | None = None
        balancer = self._choose_balancer(balancer)
        seed_all(settings.seed)

        # Before minutes are spent on the corpora.
        world.run_on_all_ranks(
            lambda: find_trackers(settings.runner.track if world.is_lead else "")
        )
        world.run_on_all_ranks(lambda: check_layouts(settings, settings.downstream, resume))
        self.encoder = self._build_encoder()
        self.upstream, self.featurizer = self.encoder.upstream, self.encoder.featurizer
        specaug = SpecAugment(**asdict(settings.specaug)) if settings.specaug else None
        placement, self._costs = choose_placement(
            settings, world, resume, self.encoder, specaug, self.folder
        )
        self.tasks, groups = self._build_tasks(placement)
        self._sources = self._load_initial_weights() if resume is None else {}
        self.run = Run(
            names=settings.downstream,
            seed=settings.seed,
            world=world,
            placement=placement,
            groups=groups,
            encoder=self.encoder,
            tasks=self.tasks,
            specaug=specaug,
            stop_asked=self.stop_asked,
        )
        self.training_step = self._build_step(balancer.to(self.device))
        self.run_state = RunState(self.source_config, self.run, self.training_step)
        if resume is not None:
            self._restore_weights(resume)
        for block in self.run.blocks():
            check_in_sync(block.group, block.name, block.parameters)
        self.evaluator = Evaluator(self.run)
        self.publisher = Publisher(self.folder, self.run_state)
        # Each rank has its own random seed; that of the first is the one of a single process.
        if world.rank > 0:
            seed_all(derived_seed("rank", settings.seed, world.rank))

    def _choose_balancer(self, given: Balancer | None) -> Balancer:
        """The given balancer or that of the config; refuse one that the steps do not suit."""
        config, world = self.config, self.world
        balancer = given
        if balancer is None:
            balancer = world.run_on_all_ranks(
                lambda: make_balancer(config.balancer, config.downstream, config.seed, self.device)
            )
        rule = config.runner.sampling
        steps = tasks_of_steps(rule, config.downstream)
        world.run_on_all_ranks(partial(check_steps, balancer, steps, rule))
        return balancer

    def _build_encoder(self) -> SharedEncoder:
        config = self.config
        upstream = self.world.run_on_all_ranks(lambda: build_upstream(config, self._resumed))
        upstream = upstream.to(self.device)
        if config.precision == "tf32":
            use_tf32(self.device)
        if config.runner.checkpoint_activations:
            upstream.checkpoint_activations()
        freeze = bool(config.upstream.freeze)
        if freeze:
            upstream.requires_grad_(False)
        elif config.upstream.freeze_layers is not None:
            freeze_layers(upstream, config.upstream.freeze_layers)
        selection = config.upstream.feature_selection
        featurizer = Featurizer(upstream, selection).to(self.device)
        bf16 = config.precision == "bf16"
        return SharedEncoder(upstream, featurizer, self.device, freeze, bf16)

    def _build_tasks(self, placement: Placement) -> tuple[dict[str, Task], dict[str, Group]]:
        """The tasks of this rank, and the ranks that share each of them."""
        config, world = self.config, self.world
        own = placement.tasks_of(world.rank)
        experts = world.run_on_all_ranks(
            lambda: build_experts(
                config, own, self.upstream, self.featurizer, self.folder, self._resumed
            )
        )
        # All ranks have to create every group.
        groups = {name: world.group(placement.ranks_of(name)) for name in config.downstream}
        tasks = {
            name: Task.from_settings(
                name,
                expert.to(self.device),
                config.tasks[name],
                seed=config.seed,
                shares=placement.shares_of(name, world.rank),
                num_shares=world.size,
            )
            for name, expert in experts.items()
        }
        return tasks, {name: group for name, group in groups.items() if group is not None}

    def _load_initial_weights(self) -> dict[str, Source]:
        """Load the weights of `init_ckpt` and `init_upstream_ckpt`; their sources by part."""
        experts = {name: task.expert for name, task in self.tasks.items()}
        return self.world.run_on_all_ranks(
            lambda: load_initial_weights(self.config, self.upstream, self.featurizer, experts)
        )

    def _build_step(self, balancer: Balancer) -> TrainingStep:
        config = self.config
        optimizer = make_optimizer(
            parameter_groups(self.run, balancer, config)
            if config.optimizer.get("groups")
            else self.run.trained_parameters(balancer).values(),
            config.optimizer,
        )
        scheduler = make_scheduler(optimizer, config.scheduler, config.runner.total_steps)
        return TrainingStep(self.run, balancer, optimizer, scheduler, config.runner)

    def _restore_weights(self, saved: RunCheckpoint) -> None:
        self.run.step = saved.step
        if not saved.upstream:
            self.world.run_on_all_ranks(lambda: load_initial_encoder(self.config, self.upstream))
        self.world.run_on_all_ranks(lambda: self.run_state.restore_weights(saved))

    # ------------------------------------------------------------------------- training

    def train(self, signals: StopSignals | None = None) -> Results:
        """Train to the last step, with evaluations, logs and checkpoints.

        Args:
            signals: an entered context; a signal during training saves and stops the run.

        Returns:
            the results of the last evaluation of every split, on the first rank. Splits that
            cannot be scored are empty; see :meth:`require_scores`.

        Raises:
            Stopped: a rank received a signal; the run is saved.
        """
        world = self.world
        own = world.run_on_all_ranks(lambda: check_splits(self.config, self.tasks))
        # A rank may have only some of the tasks.
        sizes = world.gather(own)
        if sizes is not None:
            write_corpora(
                self.folder, {name: found for rank in sizes for name, found in rank.items()}
            )
            write_yaml(self.source_config, self.folder / "config.yaml")
            write_placement(self.run.placement, self._costs, self.config, self.folder)
        self._log_summary()
        if self._resumed is not None and self._resumed.training is not None:
            self.evaluated_step = self._resumed.training.evaluated_step
            self.run_state.restore_training(self._resumed.training)
            if world.is_lead:
                warn_of_schedule(self._resumed, self.config)
            self._resumed = None
        self._signals = signals
        reevaluate = self.splits("dev_splits") if self._evaluation_is_pending() else []
        with (
            signals.deferred() if signals is not None else nullcontext(),
            world.run_on_all_ranks(lambda: self._recorder(reevaluate)) as recorder,
        ):
            self._train(recorder)
            return recorder.results if recorder is not None else {}

    def _recorder(
        self, reevaluate: Iterable[tuple[str, str]]
    ) -> AbstractContextManager[Recorder | None]:
        """Nothing on all ranks but the first."""
        if not self.world.is_lead:
            return nullcontext()
        run = TrackedRun(self.folder, self.source_config, self.step)
        trackers = start_trackers(self.config.runner.track, run)
        return Recorder(self.folder, self.step, reevaluate, trackers)

    def _log_summary(self) -> None:
        """Log what is trained, at which rate, and from which weights, on the first rank."""
        config = self.config
        own = Source(config.upstream.name, file=config.upstream.ckpt or "")
        resumed = Source("resumed run", self.step) if self._resumed is not None else None
        fresh = {
            name: Source(getattr(task.expert, "starts_from", "random weights"))
            for name, task in self.tasks.items()
        }
        heads: dict[str, list[str]] = {}
        for part in self.world.all_gather(
            {
                name: part_cells(task.expert, resumed or self._sources.get(name, fresh[name]))
                for name, task in self.tasks.items()
            }
        ):
            heads |= part
        # The checkpoints of a run with a frozen encoder do not have it.
        has_encoder = self._resumed is not None and self._resumed.upstream
        encoder = (resumed if has_encoder else None) or self._sources.get(ENCODER, own)
        uniform = resumed or self._sources.get(FEATURIZER, Source("equal weights"))
        parts = {
            ENCODER: part_cells(self.upstream, encoder),
            FEATURIZER: part_cells(self.featurizer, uniform),
            **{name: heads[name] for name in config.downstream},
        }
        if self.world.is_lead:
            logger.info("%s", training_summary(config, parts, self.step))
            rate = high_rate(config, self.upstream)
            if rate is not None:
                logger.warning(
                    "The pre-trained encoder is trained at the rate %g. Rates above %g usually "
                    "destroy it: freeze it with --freeze_upstream, or set "
                    "optimizer.groups.encoder.lr.",
                    *(rate, HIGH_RATE),
                )
            conflicts = self.training_step.conflicts
            if conflicts.every and not conflicts.has_pairs:
                logger.warning(
                    "No two tasks train the same parameters: --log_conflicts has no effect."
                )
            balancer = self.training_step.balancer
            if isinstance(balancer, GradientBalancer) and not self.run.shared:
                logger.warning(
                    "No two tasks train the same parameters: --balancer %s has no effect.",
                    config.balancer["name"],
                )

    def _train(self, recorder: Recorder | None) -> None:
        runner = self.config.runner
        total = runner.total_steps
        if runner.test_first and self.step == 0:
            with _nothing_to_save():
                self.evaluate(self.splits("test_splits"), recorder)
        if self._evaluation_is_pending():
            # The evaluation after this step did not complete before the run was resumed.
            self._evaluate_dev(recorder)
        with StepProgress(self.step, total, shown=self.world.is_lead) as progress:
            while self.step < total:
                report = self.train_step()
                progress.advance(self.step, report.losses, report.audio_seconds)
                if self.step % runner.log_step == 0 or self.step == total:
                    self.publisher.publish_training(recorder, report.losses)
                if report.gramians is not None:
                    self.publisher.publish_conflicts(recorder, report.gramians)
                if report.stop:
                    self._save_and_stop()
                save_is_due = self.step % runner.save_step == 0 or self.step == total
                if self._evaluation_is_due():
                    if save_is_due:
                        self.save()  # an evaluation may take hours; saved again afterwards
                    self._evaluate_dev(recorder)
                if save_is_due:
                    self.save()
        self.training_step.loaders.close()
        if runner.test_last:
            self._test(recorder)

    def train_step(self) -> StepReport:
        """Take one step: an update from a batch of every share of every task, on all ranks."""
        if self.world.watch is not None:
            self.world.watch.step = self.step + 1
        self._freeze_first_steps()
        report = self.training_step.take()
        self.run.step += 1
        return report

    def _freeze_first_steps(self) -> None:
        """Freeze the encoder up to step `unfreeze_after`. Its parameters have no gradient then, so
        that the optimizer passes them over and begins their state with the first one.
        """
        last = self.config.runner.unfreeze_after
        if last is None:
            return
        self.encoder.freeze = self.step < last
        if self.step == last:
            # The encoder was unused: divide the buckets of gradients again.
            self.training_step.gradients.set_unused(None)
            self.training_step.micro_batcher.limit.begin()

    @property
    def step(self) -> int:
        """Training steps taken."""
        return self.run.step

    def stop_asked(self) -> bool:
        """Whether any rank received a stop signal."""
        watch = self.world.watch
        by_signal = self._signals is not None and self._signals.requested is not None
        return by_signal or (watch is not None and watch.stop_asked is not None)

    def _save_and_stop(self) -> None:
        self.save()
        logger.warning("Saved the run at step %d, because it was asked to stop.", self.step)
        raise Stopped(f"The run stopped after step {self.step}, which is saved.")

    def _evaluation_is_due(self) -> bool:
        runner = self.config.runner
        at_an_end = self.step == runner.total_steps
        return self.step > 0 and (self.step % runner.eval_step == 0 or at_an_end)

    def _evaluation_is_pending(self) -> bool:
        """Whether the evaluation after the current step is due and has not been completed."""
        return self._evaluation_is_due() and self.evaluated_step < self.step

    def _evaluate_dev(self, recorder: Recorder | None) -> None:
        try:
            self.evaluate(self.splits("dev_splits"), recorder, keep_best=True)
        except Interrupted:
            self._save_and_stop()
        except RankLost:
            raise
        except Exception:
            # Do not lose the steps since the last checkpoint.
            logger.error("The evaluation failed: saving the run.")
            self.save()
            raise
        self.evaluated_step = self.step

    def _test(self, recorder: Recorder | None) -> None:
        """Evaluate the test splits of each task with its best checkpoint, or the last weights."""
        found = self.world.run_on_all_ranks(
            lambda: self._best_checkpoints() if self.world.is_lead else {}
        )
        best = self.world.broadcast(found)
        names = {task: name_in_run(path, self.folder) for task, (path, _) in best.items()}
        earlier = {task: path for task, (path, step) in best.items() if step != self.step}
        now = [place for place in self.splits("test_splits") if place[0] not in earlier]
        with _nothing_to_save():
            if now:
                self.evaluate(now, recorder, sources=names)
            for task, path in earlier.items():
                saved = self.world.run_on_all_ranks(partial(checkpoints.load, path))
                logger.info("Testing %s with %s of step %d.", task, names[task], saved.step)
                config = {**self.source_config, "downstream": [task]}
                _, unscored = evaluate_checkpoint(
                    saved, path, config, self.folder, self.world, recorder, signals=self._signals
                )
                self.unscored |= unscored

    def _best_checkpoints(self) -> dict[str, tuple[Path, int]]:
        """File and step of the best checkpoint of each task that has one."""
        found: dict[str, tuple[Path, int]] = {}
        if not self.config.runner.test_best:
            return found
        for task, files in best_files(self.folder).items():
            if task in self.config.downstream:
                try:
                    path = best_of(task, files, self.source_config)
                    found[task] = path, checkpoints.load(path).step
                except UserError as problem:
                    logger.warning("%s is tested with its last weights: %s", task, problem)
        return found

    def try_out(self) -> None:
        """Run one batch of every training and evaluation split, without an update."""
        splits = self.splits("dev_splits") + self.splits("test_splits")
        logger.info("Reading the corpora.")
        self.world.run_on_all_ranks(lambda: check_splits(self.config, self.tasks))
        self._log_summary()
        logger.info("Trying a training step.")
        self.world.run_on_all_ranks(lambda: try_step(self.training_step))
        logger.info("Trying one batch of %d evaluation splits.", len(splits))
        self.world.run_on_all_ranks(lambda: try_splits(self.run, splits))

    # ----------------------------------------------------------------------- evaluation

    def evaluate(
        self,
        splits: Iterable[tuple[str, str]],
        recorder: Recorder | None,
        keep_best: bool = False,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Evaluate splits of tasks with the current weights.

        Args:
            splits: pairs of task and split.
            recorder: receives the metrics and writes `results.json`. None on all ranks but the
                first.
            keep_best: write `<task>/<split>-best.ckpt` if the expert requests it.
            sources: for each task the checkpoint file that holds these weights, for the metrics;
                by default none.

        Splits that cannot be scored are in `unscored` afterwards; :meth:`require_scores` raises.

        Raises:
            UserError: the run has no such task, or a split cannot be read.
            Interrupted: the run was asked to stop before all splits were done.
        """
        names = dict.fromkeys(self.config.downstream)
        wanted = [(require_in_run(name, names, "-t"), split) for name, split in splits]
        before = self.evaluator.expert_states()
        reports = self.evaluator.evaluate(wanted)
        try:
            self.publisher.publish_evaluation(recorder, reports, keep_best, sources or {})
        except Exception:
            # Unpublished scores must be measured again.
            self.evaluator.restore(before)
            raise
        problems = {(r.task, r.split): r.problem or undefined_metrics(r) for r in reports}
        for place, problem in self.world.broadcast(problems).items():
            self.unscored.pop(place, None)
            if problem is not None:
                self.unscored[place] = problem

    def require_scores(self) -> None:
        """Raise an error if the last evaluation of a split could not be scored.

        Raises:
            UserError: on all ranks; names the tasks and splits with the reasons.
        """
        if self.unscored:
            raise unscored_error(self.unscored)

    # ---------------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """Write `states-<step>.ckpt`, then delete the oldest ones beyond `max_keep`."""
        path = self.folder / f"states-{self.step}.ckpt"
        share_buffers(self.run)
        for block in self.run.blocks():
            resync_parameters(block.group, block.name, block.parameters)
        state = self.state()
        with self.world.doing("saving a checkpoint"):
            self.world.run_on_all_ranks(lambda: self._write(state, path))
        return path

    def _write(self, state: RunCheckpoint | None, path: Path) -> None:
        if state is not None:
            checkpoints.save(state, path)
            checkpoints.keep_newest(self.folder, self.config.runner.max_keep)

    def state(self) -> RunCheckpoint | None:
        """The complete state of the run on the first rank; None on the others."""
        return self.run_state.collect(self.evaluated_step)

    # --------------------------------------------------------------------------- splits

    def splits(self, kind: str) -> list[tuple[str, str]]:
        """Pairs of task and split: the `dev_splits` or `test_splits` of every task."""
        known: dict[str, list[str]] = {}
        for part in self.world.all_gather({n: getattr(t, kind) for n, t in self.tasks.items()}):
            known |= part
        return [(name, split) for name in self.config.downstream for split in known[name]]


def evaluate_checkpoint(
    saved: RunCheckpoint,
    path: Path,
    config: Config,
    folder: Path,
    world: World,
    recorder: Recorder | None,
    splits: Sequence[tuple[str, str]] = (),
    signals: StopSignals | None = None,
) -> tuple[list[tuple[str, str]], dict[tuple[str, str], UserError]]:
    """Evaluate splits with the weights of a checkpoint; every rank evaluates a part of each split.

    Args:
        saved: the checkpoint.
        path: its file, for the metrics.
        config: of the run, with the tasks to evaluate in `downstream`.
        folder: of the run.
        world: all ranks.
        recorder: receives the metrics; None on all ranks but the first.
        splits: pairs of task and split; the test splits if empty.
        signals: those that stop the evaluation.

    Returns:
        The evaluated pairs of task and split, and why some of them could not be scored.

    Raises:
        UserError: the config does not fit the weights, or a split cannot be read.
        Interrupted: the run was asked to stop.
    """
    gc.collect()  # An earlier runner keeps its encoder in reference cycles.
    # Also if the run was trained task-parallel.
    config = {
        **config,
        "distributed": {"parallel": "data", "placement": None},
        "runner": {**config["runner"], "sampling": "all"},
        "balancer": {"name": "sum"},
    }
    runner = MultiTaskRunner(config, folder, resume=saved, world=world)
    runner._signals = signals
    wanted = list(splits) or runner.splits("test_splits")
    sources = dict.fromkeys(runner.config.downstream, name_in_run(path, folder))
    runner.evaluate(wanted, recorder, sources=sources)
    return wanted, runner.unscored


@contextmanager
def _nothing_to_save() -> Iterator[None]:
    """Stop the run if an evaluation before the first or after the last step is interrupted."""
    try:
        yield
    except Interrupted:
        raise Stopped("The run stopped; there was nothing to save.") from None
