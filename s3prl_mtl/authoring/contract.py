"""Clauses of a task's contract, each with its check, and findings about them."""

from __future__ import annotations

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
    """The clause does not hold; the message says why."""


class NotApplicable(Exception):
    """The clause does not apply to the task, or cannot be checked; the message says why."""


@dataclass(frozen=True)
class Clause:
    """One clause of the contract, as `docs/plugins.md` numbers and quotes it.

    Args:
        number: from 1.
        text: what must hold.
        check: tests it on a task.
    """

    number: int
    text: str
    check: Check = field(repr=False)


CLAUSES: dict[int, Clause] = {}
"""All clauses by number, registered by :func:`clause`."""


def clause(number: int, text: str) -> Callable[[Check], Check]:
    """Register the decorated function as the check of a clause."""

    def register(check: Check) -> Check:
        assert number not in CLAUSES, f"two clauses {number}"
        CLAUSES[number] = Clause(number, text, check)
        return check

    return register


@dataclass(frozen=True)
class Finding:
    """Whether a task keeps a clause of the contract.

    Args:
        clause: the clause.
        holds: None if the clause does not apply to the task, or was not checked.
        why: what was observed.
        checked: False if the clause could not be checked, because there is no corpus or the expert
            cannot be built.
    """

    clause: Clause
    holds: bool | None
    why: str
    checked: bool = True

    @property
    def verdict(self) -> str:
        """The outcome, as `check-task` prints it."""
        if not self.checked:
            return "not checked"
        return {True: "holds", False: "does not hold", None: "not applicable"}[self.holds]

    def __str__(self) -> str:
        return f"{self.clause.number}. {self.clause.text} {self.verdict.upper()}: {self.why}"


_LIBRARIES = (f"{Path(str(torch.__file__)).parent}/", f"{Path(__file__).parents[1]}/")


def failure_summary(error: BaseException) -> str:
    """An error on one line: type, message, and the innermost frame in the task's own code."""
    summary = error_summary(error)
    own = [frame for frame in frames_of(error) if not frame.path.startswith((*_LIBRARIES, "<"))]
    return f"{summary} ({own[-1]})" if own else summary
