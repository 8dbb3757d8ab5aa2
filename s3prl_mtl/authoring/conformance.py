"""Whether a task keeps its contract: each line is tried out on the task itself."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from s3prl_mtl.authoring.batch_checks import BATCH_CHECKS
from s3prl_mtl.authoring.building_checks import BUILDING_CHECKS
from s3prl_mtl.authoring.contract import CONTRACT, Finding
from s3prl_mtl.authoring.head_checks import HEAD_CHECKS
from s3prl_mtl.authoring.measuring_checks import MEASURING_CHECKS
from s3prl_mtl.authoring.subject import Subject
from s3prl_mtl.authoring.verdicts import Broken, Check, NotApplicable

CHECKS: dict[int, Check] = {
    **BUILDING_CHECKS,
    **BATCH_CHECKS,
    **HEAD_CHECKS,
    **MEASURING_CHECKS,
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

    No encoder is needed: the heads get pseudo-random features.

    Args:
        name: of the task, as after `-d`.
        data: the folder of the corpora, as after `--data`; by default `$SUPERB_DATA`.
        config: files of settings, as after `-c`.
        overrides: settings, as after `-o`.
        batches: how many batches of a split are read at most. By default 16 of the training split
            and all of the splits that are evaluated.
        lines: numbers of the lines to try out; None: all. (The first always is: it builds.)

    Returns:
        one finding for each of the lines, in the order of the contract.

    Raises:
        UserError: there is no such task, it cannot be imported, its settings are wrong, or its
            corpus is not there.
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        subject = Subject(name, Path(folder), data, config, overrides, batches)
        findings: list[Finding] = []
        for clause in CONTRACT:
            if lines is not None and clause.number not in (1, *lines):
                continue
            if findings and findings[0].holds is False:
                findings.append(Finding(clause, None, "not checked: it cannot be built."))
                continue
            holds, why = _try_out(CHECKS[clause.number], subject)
            findings.append(Finding(clause, holds, why))
    return findings


def _try_out(check: Check, subject: Subject) -> tuple[bool | None, str]:
    try:
        return True, check(subject)
    except NotApplicable as reason:
        return None, str(reason)
    except Broken as reason:
        return False, str(reason)
    except Exception as error:
        # Whatever a stranger's code raises is a finding about it.
        text = " ".join(str(error).split()).rstrip(".")
        return False, f"{type(error).__name__}: {text}."
