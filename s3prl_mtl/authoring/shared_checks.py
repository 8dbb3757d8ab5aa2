"""Lines of the contract about several processes, tried out in two real ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from s3prl_mtl.authoring.batch_checks import digests
from s3prl_mtl.authoring.harness import Subject
from s3prl_mtl.authoring.processes import Answer, one_thread, run_ranks
from s3prl_mtl.authoring.sayings import said_by
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.data.randomness import RandomStream
from s3prl_mtl.data.sampling import derived_seed
from s3prl_mtl.distributed.gradients import GradientSum
from s3prl_mtl.distributed.world import OtherRankFailed, RankLost, World
from s3prl_mtl.tracking.tracker import Report

RANKS = 2
TOLERANCE = 1e-4
"""How far a gradient may be off, relative to its norm: sums of float32 in another order."""


@dataclass(frozen=True)
class Step:
    """A training step: its loss, and the gradient of every parameter that has one."""

    loss: float
    gradients: dict[str, np.ndarray]


def two_shares_are_the_whole(subject: Subject) -> str:
    whole, ended = _whole(subject, subject.build())
    halves = [name for part in _on_two_ranks(subject, "shares") for name in part]
    missing, extra = Counter(whole) - Counter(halves), Counter(halves) - Counter(whole)
    # One utterance cannot be shared by two, and comes with a later epoch.
    if extra or missing.total() > (1 if ended else 0):
        raise Broken(
            f"of {len(whole)} utterances {missing.total()} are in no share, and {extra.total()} "
            "are too many."
        )
    return f"{len(halves)} of {len(whole)} utterances, none twice, read by two processes."


def divides_evaluations(subject: Subject) -> str:
    with one_thread():
        together = subject.evaluate(subject.build(), World())
    divided = _on_two_ranks(subject, "reports")[0]
    for alone, shared in zip(together, divided, strict=True):
        for name, value in alone.values.items():
            other = shared.values.get(name, math.nan)
            if not math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9):
                raise Broken(f"{alone.split}: {name} is {value:g}, and {other:g} on two processes.")
    return f"the same on two processes: {', '.join(report.split for report in together)}."


def divides_steps(subject: Subject) -> str:
    if not subject.task(subject.build()).train_split:
        raise NotApplicable("it is not trained.")
    alone, shared = _on_two_ranks(subject, "steps")[0]
    if not math.isclose(alone.loss, shared.loss, rel_tol=TOLERANCE, abs_tol=1e-9):
        raise Broken(f"the loss is {alone.loss:.6g}, and {shared.loss:.6g} on two processes.")
    odd = sorted(alone.gradients.keys() ^ shared.gradients.keys())
    if odd:
        raise Broken(f"{odd[0]} has a gradient on one process or on two, and not on both.")
    for name, gradient in alone.gradients.items():
        norm = float(np.linalg.norm(gradient))
        difference = float(np.linalg.norm(gradient - shared.gradients[name]))
        if not difference <= TOLERANCE * norm + 1e-9:
            raise Broken(
                f"the gradient of {name} has the norm {norm:.4g}, and on two processes it is "
                f"another one, by {difference:.4g}."
            )
    return f"loss {alone.loss:.4g} and {len(alone.gradients)} gradients, the same on two processes."


def _on_two_ranks(subject: Subject, what: str) -> list[Any]:
    """What both ranks gave of one kind.

    Raises:
        Broken: one of them failed.
    """
    if subject.on_two_ranks is None:
        expert = subject.build()
        trained = bool(subject.task(expert).train_split)
        # Both stop at the same place where the epoch does not end before.
        ended = _whole(subject, expert)[1] if trained else True
        subject.on_two_ranks = run_ranks(RANKS, _all_of_it, subject.again(), trained, ended)
    answers = [answer if answer.failure else answer.value[what] for answer in subject.on_two_ranks]
    failed = [(rank, answer) for rank, answer in enumerate(answers) if answer.failure]
    if failed:
        # The one that the other followed says what was wrong.
        rank, first = next((entry for entry in failed if not entry[1].follows), failed[0])
        raise Broken(f"on rank {rank} of two processes: {first.failure}.")
    return [answer.value for answer in answers]


def _all_of_it(
    world: World, make_subject: Callable[[], Subject], trained: bool, ended: bool
) -> dict[str, Answer]:
    """What a rank does: everything, so that its start has to be waited for once only."""
    subject = make_subject()
    doings: dict[str, Callable[[Any], Any]] = {"reports": partial(_evaluate, world, subject)}
    if trained:
        doings["shares"] = partial(_share, world, subject, ended)
        doings["steps"] = partial(_steps, world, subject)
    return {what: _answer(world, subject, doing) for what, doing in doings.items()}


def _answer(world: World, subject: Subject, doing: Callable[[Any], Any]) -> Answer:
    try:
        return Answer(doing(world.run_on_all_ranks(subject.build)))
    except RankLost:
        raise
    except OtherRankFailed as error:
        return Answer(failure=said_by(error), follows=True)
    except (Exception, SystemExit) as error:
        return Answer(failure=said_by(error))


def _whole(subject: Subject, expert: Any) -> tuple[list[str], bool]:
    """The utterances of as much of a training epoch as is looked at; whether it is all of it."""
    split = subject.task(expert).train_split
    if not split:
        raise NotApplicable("it is not trained.")
    whole: list[str] = []
    for number, batch in enumerate(subject.reader(expert, split, True)):
        if number == RANKS * (subject.limit(training=True) or 0):
            return whole, False
        whole += digests(batch)
    return whole, True


def _share(world: World, subject: Subject, ended: bool, expert: Any) -> list[str]:
    """The utterances of this rank's share."""
    split = subject.task(expert).train_split
    rounds = subject.limit(training=True) or 0
    reader = subject.reader(expert, split, True, (world.rank,), world.size)
    found: list[str] = []
    done = 0
    while (ended or done < rounds) and (batches := reader.next_round()) is not None:
        done += 1
        for batch in batches:
            found += digests(batch)
    return found


def _evaluate(world: World, subject: Subject, expert: Any) -> list[Report]:
    return subject.evaluate(expert, world)


def _steps(world: World, subject: Subject, expert: Any) -> tuple[Step, Step]:
    """The first training step as one process takes it, and as all ranks do.

    Both in the processes of the ranks: s3prl's experts order an epoch in another way where there
    are several.
    """
    return _step(World(), subject, expert), _step(
        world, subject, world.run_on_all_ranks(subject.build)
    )


def _step(world: World, subject: Subject, expert: Any) -> Step:
    """The first training step, as the runner takes it with a batch of each of two shares."""
    split = subject.task(expert).train_split
    shares = (world.rank,) if world.size == RANKS else tuple(range(RANKS))
    reader = subject.reader(expert, split, True, shares, RANKS)
    expert.train()

    def losses() -> list[tuple[int, Any]]:
        found = []
        for batch in reader.next_round() or []:
            # What a head draws at random would differ from one process to the other.
            seed = derived_seed("step", subject.seed, batch.number)
            with RandomStream(seed).active():
                loss = subject.loss(expert, split, batch)
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


SHARED_CHECKS: dict[int, Check] = {
    7: two_shares_are_the_whole,
    15: divides_evaluations,
    16: divides_steps,
}
