"""Create the package of a task (`new_task`), and check its contract (`check_task`)."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

# Importing the modules of checks registers their clauses.
import s3prl_mtl.authoring.expert_checks
import s3prl_mtl.authoring.loader_checks
import s3prl_mtl.authoring.metric_checks
import s3prl_mtl.authoring.padding_checks
import s3prl_mtl.authoring.parallel_checks  # noqa: F401
from s3prl_mtl.authoring.contract import (
    CLAUSES,
    Clause,
    Doubtful,
    Finding,
    NotApplicable,
    violation,
)
from s3prl_mtl.authoring.harness import NeedsData, TaskHarness
from s3prl_mtl.authoring.new_task import new_task
from s3prl_mtl.errors import UserError

__all__ = ["CONTRACT", "Clause", "Finding", "check_task", "findings_of_task", "new_task"]

CONTRACT = tuple(CLAUSES[number] for number in sorted(CLAUSES))
"""The clauses that the runner relies on, in the order in which `check-task` checks them."""


def check_task(
    name: str,
    data: str | Path | Sequence[str | Path] | None = None,
    config: Sequence[str | Path] = (),
    overrides: str | None = None,
    batches: int | None = None,
    lines: Collection[int] | None = None,
) -> list[Finding]:
    """Check an installed task against the contract.

    In a test of the task's own package::

        def test_the_task_satisfies_the_contract():
            findings = check_task("lid", data="corpora")
            assert not [str(finding) for finding in findings if finding.holds is False]

    No encoder is needed: the heads get pseudo-random features. Loader workers and ranks are real
    processes, started from scratch, which import the task again.

    Args:
        name: of the task, as after `-d`.
        data: folder of the corpora, as after `--data`, or several, of which the first one with the
            corpus of the task is used; by default `$SUPERB_DATA`. Without either, the clauses that
            need the corpus are not checked.
        config: YAML files of settings, as after `-c`.
        overrides: settings, as after `-o`.
        batches: maximum number of batches to read of each split, at least 1. By default 16 of the
            training split and all of the evaluated splits.
        lines: numbers of the clauses to check; None: all. Clause 1 is always checked.

    Returns:
        One finding for each clause, in the order of the contract. A mistake is reported once:
        clauses that fail for the same reason as an earlier one count as not checked.

    Raises:
        UserError: the task does not exist or cannot be imported, its settings are wrong, its corpus
            is missing, or `batches` is less than 1.
    """
    return list(findings_of_task(name, data, config, overrides, batches, lines))


def findings_of_task(
    name: str,
    data: str | Path | Sequence[str | Path] | None = None,
    config: Sequence[str | Path] = (),
    overrides: str | None = None,
    batches: int | None = None,
    lines: Collection[int] | None = None,
) -> Iterator[Finding]:
    """Yield the findings of :func:`check_task`, each as soon as its clause is checked."""
    if batches is not None and batches < 1:
        raise UserError(
            f"The number of batches must be at least 1, not {batches}.",
            where="--batches",
            fix="Give 1 or more, or leave it out.",
            code="invalid-value",
        )
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        harness = TaskHarness(name, Path(folder), data, config, overrides, batches)
        first: dict[int, int] = {}  # clauses that failed: the first one that did for this reason
        causes: dict[str, int] = {}
        for clause in CONTRACT:
            if lines is not None and clause.number not in (1, *lines):
                continue
            failed = next((first[number] for number in (1, *clause.needs) if number in first), None)
            if failed is None:
                finding = _check(clause, harness)
                if finding.holds is False:
                    failed = causes.setdefault(finding.cause, clause.number)
            if failed is not None:
                first[clause.number] = failed
                if failed != clause.number:
                    reason = f"clause {failed} does not hold."
                    finding = Finding(clause, None, reason, checked=False)
            yield finding


def _check(clause: Clause, harness: TaskHarness) -> Finding:
    try:
        return Finding(clause, True, clause.check(harness))
    except Doubtful as reason:
        return Finding(clause, True, str(reason), doubtful=True)
    except NotApplicable as reason:
        return Finding(clause, None, str(reason))
    except NeedsData as reason:
        return Finding(clause, None, f"needs --data DIR: {reason}.", checked=False)
    except (Exception, SystemExit) as error:
        # Code of another package may raise anything; that is a finding, not a failure of ours.
        return violation(clause, error)
