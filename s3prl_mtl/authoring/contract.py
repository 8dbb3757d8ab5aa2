"""Clauses of a task's contract, each with its check, and findings about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from s3prl_mtl.authoring.harness import TaskHarness
from s3prl_mtl.errors import error_summary
from s3prl_mtl.registry.fault import frames_of

Check = Callable[[TaskHarness], str]
"""Checks a task; returns what it observed. Raises `Violated` or `NotApplicable`."""


class Violated(Exception):
    """The clause does not hold; the message has the reason."""


class Doubtful(Exception):
    """The clause holds, but probably not as its author wants; the message has the reason."""


class NotApplicable(Exception):
    """The clause does not apply to the task, or cannot be checked; the message has the reason."""


@dataclass(frozen=True)
class Clause:
    """One clause of the contract, as `docs/plugins.md` numbers and quotes it.

    Args:
        number: from 1.
        title: a few words.
        text: what must hold.
        check: tests it on a task.
        needs: clauses without which the check would only fail again.
    """

    number: int
    title: str
    text: str
    check: Check = field(repr=False)
    needs: tuple[int, ...] = ()


CLAUSES: dict[int, Clause] = {}
"""All clauses by number, registered by :func:`clause`."""


def clause(
    number: int, title: str, text: str, needs: tuple[int, ...] = ()
) -> Callable[[Check], Check]:
    """Register the decorated function as the check of a clause."""

    def register(check: Check) -> Check:
        assert number not in CLAUSES, f"two clauses {number}"
        CLAUSES[number] = Clause(number, title, text, check, needs)
        return check

    return register


@dataclass(frozen=True)
class Finding:
    """The result of checking a clause of the contract on a task.

    Args:
        clause: the clause.
        holds: whether the task keeps the clause; None if it does not apply or was not checked.
        why: what was observed.
        checked: False if the clause could not be checked: there is no corpus, the expert cannot be
            built, or the check fails for the same reason as that of an earlier clause.
        doubtful: it holds, with a warning.
        cause: of a violation; equal for violations by one mistake.
    """

    clause: Clause
    holds: bool | None
    why: str
    checked: bool = True
    doubtful: bool = False
    cause: str = field(default="", repr=False)

    @property
    def result(self) -> str:
        """The outcome, as `check-task` prints it."""
        if not self.checked:
            return "not checked"
        if self.doubtful:
            return "warning"
        return {True: "holds", False: "does not hold", None: "not applicable"}[self.holds]

    def __str__(self) -> str:
        return f"{self.clause.number}. {self.clause.text} {self.result.upper()}: {self.why}"


def violation(clause: Clause, error: BaseException) -> Finding:
    """The finding that a clause does not hold, as its check raised an error.

    Its cause is the line of the task's code that failed, if there is one, or the whole message.
    """
    own = isinstance(error, Violated)
    why = str(error) if own else f"{failure_summary(error)}."
    origin = failure_summary(error.__cause__) if own and error.__cause__ else why.rstrip(".")
    place = re.search(r"\([^()]+, line \d+, in [^()]+\)", origin)
    return Finding(clause, False, why, cause=place[0] if place else origin)


_LIBRARIES = (f"{Path(str(torch.__file__)).parent}/", f"{Path(__file__).parents[1]}/")


def failure_summary(error: BaseException) -> str:
    """An error on one line: type, message, and the innermost frame in the task's own code."""
    summary = error_summary(error)
    own = [frame for frame in frames_of(error) if not frame.path.startswith((*_LIBRARIES, "<"))]
    return f"{summary} ({own[-1]})" if own else summary
