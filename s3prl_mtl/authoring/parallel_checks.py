"""Clauses about several ranks, checked on two real processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from s3prl_mtl.authoring.contract import NotApplicable, Violated, clause, failure_summary
from s3prl_mtl.authoring.harness import TaskHarness
from s3prl_mtl.authoring.loader_checks import digests
from s3prl_mtl.authoring.processes import RankResult, one_thread, run_ranks
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import OtherRankFailed, RankLost, World

RANKS = 2
TOLERANCE = 1e-4
"""Relative to the norm of a gradient: float32 sums in another order."""


@dataclass(frozen=True)
class Step:
    """The loss of a training step, and the gradient of every parameter that has one."""

    loss: float
    gradients: dict[str, np.ndarray]


@clause(
    7,
    "shares",
    "Two shares of a training epoch, each read by its own process, together hold every utterance "
    "exactly once.",
    needs=(5,),
)
def divides_epochs(harness: TaskHarness) -> str:
    expected, ended = _read_epoch(harness, harness.build())
    found = [digest for share in _on_two_ranks(harness, "shares") for digest in share]
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    # A last single utterance cannot be divided; it comes up in a later epoch.
    if extra or missing.total() > (1 if ended else 0):
        raise Violated(
            f"of {len(expected)} utterances {missing.total()} are in no share, and the shares have "
            f"{extra.total()} others."
        )
    return f"{len(found)} of {len(expected)} utterances, each once, read by two processes."


@clause(
    15,
    "divided evaluation",
    "An evaluation divided between two processes reports what one process reports.",
    needs=(8, 11),
)
def divides_evaluations(harness: TaskHarness) -> str:
    with one_thread():
        undivided = harness.evaluate(harness.build(), World())
    divided = _on_two_ranks(harness, "reports")[0]
    for one, two in zip(undivided, divided, strict=True):
        for name, value in one.values.items():
            other = two.values.get(name, math.nan)
            if not math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9):
                raise Violated(f"{one.split}: {name} is {value:g}, and {other:g} on two processes.")
    return f"the same on two processes: {', '.join(report.split for report in undivided)}."


@clause(
    16,
    "divided step",
    "A training step divided between two processes has the loss and the gradient of one process "
    "on the same batches.",
    needs=(5, 8),
)
def divides_steps(harness: TaskHarness) -> str:
    if not harness.task(harness.build()).train_split:
        raise NotApplicable("it is not trained.")
    one, two = _on_two_ranks(harness, "steps")[0]
    if not math.isclose(one.loss, two.loss, rel_tol=TOLERANCE, abs_tol=1e-9):
        raise Violated(f"the loss is {one.loss:.6g}, and {two.loss:.6g} on two processes.")
    odd = sorted(one.gradients.keys() ^ two.gradients.keys())
    if odd:
        raise Violated(f"{odd[0]} has a gradient only on one process or only on two.")
    for name, gradient in one.gradients.items():
        norm = float(np.linalg.norm(gradient))
        difference = float(np.linalg.norm(gradient - two.gradients[name]))
        if not difference <= TOLERANCE * norm + 1e-9:
            raise Violated(
                f"the gradient of {name} has norm {norm:.4g}, and differs by {difference:.4g} on "
                "two processes."
            )
    return f"loss {one.loss:.4g} and {len(one.gradients)} gradients, the same on two processes."


def _on_two_ranks(harness: TaskHarness, key: str) -> list[Any]:
    """One entry of :func:`_measure_rank` from each of two ranks.

    Raises:
        Violated: a rank failed.
    """
    results = [result if result.failure else result.value[key] for result in _rank_results(harness)]
    failed = [(rank, result) for rank, result in enumerate(results) if result.failure]
    if failed:
        rank, first = next((entry for entry in failed if not entry[1].follows), failed[0])
        raise Violated(f"on rank {rank} of two processes: {first.failure}.")
    return [result.value for result in results]


@lru_cache(maxsize=1)
def _rank_results(harness: TaskHarness) -> list[RankResult]:
    expert = harness.build()
    trained = bool(harness.task(expert).train_split)
    # Where the epoch is longer than the limit, both ranks stop after the same number of rounds.
    ended = _read_epoch(harness, expert)[1] if trained else True
    return run_ranks(RANKS, _measure_rank, harness.factory(), trained, ended)


def _measure_rank(
    world: World, make_harness: Callable[[], TaskHarness], trained: bool, ended: bool
) -> dict[str, RankResult]:
    """Everything that the clauses need of a rank, so that processes start only once."""
    harness = make_harness()
    measures: dict[str, Callable[[Any], Any]] = {
        "reports": lambda expert: harness.evaluate(expert, world)
    }
    if trained:
        measures["shares"] = partial(_read_share, world, harness, ended)
        measures["steps"] = partial(_steps, world, harness)
    return {key: _measured(world, harness, measure) for key, measure in measures.items()}


def _measured(world: World, harness: TaskHarness, measure: Callable[[Any], Any]) -> RankResult:
    try:
        return RankResult(measure(world.run_on_all_ranks(harness.build)))
    except RankLost:
        raise
    except OtherRankFailed as error:
        return RankResult(failure=failure_summary(error), follows=True)
    except (Exception, SystemExit) as error:
        return RankResult(failure=failure_summary(error))


def _read_epoch(harness: TaskHarness, expert: Any) -> tuple[list[str], bool]:
    """Digests of the first utterances of a training epoch, and whether these are all of it."""
    split = harness.task(expert).train_split
    if not split:
        raise NotApplicable("it is not trained.")
    found: list[str] = []
    for number, batch in enumerate(harness.reader(expert, split, True)):
        if number == RANKS * (harness.limit(training=True) or 0):
            return found, False
        found += digests(batch)
    return found, True


def _read_share(world: World, harness: TaskHarness, ended: bool, expert: Any) -> list[str]:
    """Digests of the utterances of this rank's share."""
    split = harness.task(expert).train_split
    rounds = harness.limit(training=True) or 0
    reader = harness.reader(expert, split, True, (world.rank,), world.size)
    found: list[str] = []
    done = 0
    while (ended or done < rounds) and (batches := reader.next_round()) is not None:
        done += 1
        for batch in batches:
            found += digests(batch)
    return found


def _steps(world: World, harness: TaskHarness, expert: Any) -> tuple[Step, Step]:
    """The first training step, undivided and divided between the ranks.

    Both in the processes of the ranks: s3prl's experts order an epoch differently where there are
    several.
    """
    undivided = _step(World(), harness, expert)
    return undivided, _step(world, harness, world.run_on_all_ranks(harness.build))


def _step(world: World, harness: TaskHarness, expert: Any) -> Step:
    """The first training step, of one batch of each of two shares, as the runner takes it."""
    split = harness.task(expert).train_split
    shares = (world.rank,) if world.size == RANKS else tuple(range(RANKS))
    reader = harness.reader(expert, split, True, shares, RANKS)
    expert.train()

    def losses() -> list[tuple[int, Any]]:
        found = []
        for batch in reader.next_round() or []:
            # Random draws of the head must not depend on how the batches are divided.
            seed = derived_seed("step", harness.seed, batch.number)
            with RandomStream(seed).active():
                loss = harness.loss(expert, split, batch)
            found.append((batch.utterances, loss))
        return found

    own = world.run_on_all_ranks(losses)
    utterances = world.sum(torch.tensor([float(sum(count for count, _ in own))])).item()
    total = sum((loss * (count / utterances) for count, loss in own), torch.zeros(()))
    gradients = GradientSum([(world, expert.parameters())])
    with gradients.overlapping():
        if total.requires_grad:
            total.backward()
    gradients.finish()
    value = world.sum(total.detach().double().reshape(1)).item()
    found = {
        name: parameter.grad.numpy().copy()
        for name, parameter in expert.named_parameters()
        if parameter.grad is not None
    }
    return Step(value, found)
