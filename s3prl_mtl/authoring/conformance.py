"""Whether a task keeps its contract: each line is tried out on the task itself."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from s3prl_mtl.authoring.batch_checks import BATCH_CHECKS
from s3prl_mtl.authoring.building_checks import BUILDING_CHECKS
from s3prl_mtl.authoring.contract import CONTRACT, Clause, Finding
from s3prl_mtl.authoring.harness import NeedsData, Subject
from s3prl_mtl.authoring.head_checks import HEAD_CHECKS
from s3prl_mtl.authoring.measuring_checks import MEASURING_CHECKS
from s3prl_mtl.authoring.sayings import said_by
from s3prl_mtl.authoring.shared_checks import SHARED_CHECKS
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable
from s3prl_mtl.errors import UserError

CHECKS: dict[int, Check] = {
    **BUILDING_CHECKS,
    **BATCH_CHECKS,
    **HEAD_CHECKS,
    **MEASURING_CHECKS,
    **SHARED_CHECKS,
}


def check_task(
    name: str,
    data: str | Path | None = None,
    config: Sequence[str | Path] = (),
    overrides: str | None = None,
    batches: int | None = None,
    lines: Collection[int] | None = None,
) -> list[Finding]:
    """Try out every line of the contract on an installed task.

    In a test of the task's own package::

        def test_the_task_keeps_its_contract():
            findings = check_task("lid", data="corpora")
            assert not [str(finding) for finding in findings if finding.holds is False]

    No encoder is needed: the heads get pseudo-random features. Workers and processes are real
    ones, which are started from nothing and import the task again.

    Args:
        name: of the task, as after `-d`.
        data: the folder of the corpora, as after `--data`; by default `$SUPERB_DATA`. Without
            either, the lines that need the corpus are not checked.
        config: files of settings, as after `-c`.
        overrides: settings, as after `-o`.
        batches: how many batches of a split are read at most. By default 16 of the training split
            and all of the splits that are evaluated. At least 1.
        lines: numbers of the lines to try out; None: all. (The first always is: it builds.)

    Returns:
        one finding for each of the lines, in the order of the contract.

    Raises:
        UserError: there is no such task, it cannot be imported, its settings are wrong, its
            corpus is not where it is said to be, or `batches` is no such number.
    """
    if batches is not None and batches < 1:
        raise UserError(
            f"{batches} batches cannot be read.",
            where="--batches",
            fix="Give 1 or more, or leave it out.",
        )
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        subject = Subject(name, Path(folder), data, config, overrides, batches)
        findings: list[Finding] = []
        for clause in CONTRACT:
            if lines is not None and clause.number not in (1, *lines):
                continue
            if findings and findings[0].holds is False:
                findings.append(Finding(clause, None, "it cannot be built.", checked=False))
                continue
            findings.append(_try_out(clause, subject))
    return findings


def _try_out(clause: Clause, subject: Subject) -> Finding:
    try:
        return Finding(clause, True, CHECKS[clause.number](subject))
    except NotApplicable as reason:
        return Finding(clause, None, str(reason))
    except NeedsData as reason:
        return Finding(clause, None, f"needs --data DIR: {reason}.", checked=False)
    except Broken as reason:
        return Finding(clause, False, str(reason))
    except (Exception, SystemExit) as error:
        # Whatever a stranger's code raises is a finding about it.
        return Finding(clause, False, f"{said_by(error)}.")
