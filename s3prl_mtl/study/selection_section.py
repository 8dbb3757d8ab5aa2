"""Section on checkpoint selection: what each rule would have chosen of the joint runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from html import escape

from s3prl_mtl.errors import UserError
from s3prl_mtl.study import page
from s3prl_mtl.study.dev_scores import best_dev_scores, read_dev_scores
from s3prl_mtl.study.page import Section
from s3prl_mtl.study.selection import choice_table, compare
from s3prl_mtl.study.study_results import PlannedRun, StudyFolder

logger = logging.getLogger(__name__)


def selection_section(study: StudyFolder) -> list[Section]:
    """A table for each finished run that trains the encoder, of the first seed."""
    finished = [run for run in study.finished if run.seed == study.seeds[0]]
    joint = [run for run in finished if run.row.scenario in ("b1", "b2")]
    try:
        references = best_dev_scores(
            run.record.folder for run in finished if run.row.scenario == "a"
        )
        tables = {run: _table(run, references, study) for run in joint}
    except UserError as problem:  # the package of a task may have been uninstalled
        logger.warning("%s", problem)
        return []
    parts = []
    for run, text in tables.items():
        label = study.results.label(run.row)
        if text and run.row.scenario == "b1":
            parts.append(f"<h3>{escape(label)}</h3>{text}")
        elif text:
            parts.append(page.details(label, text))
    if not parts:
        return []
    introduction = (
        "The step that each rule of s3prl-mtl select chooses for all tasks, by the scores on dev, "
        "and in parentheses what it costs each task: the difference to its own best step. The "
        "results above are by per-task. Gains are relative to (a); the runs are those of the first "
        "seed."
    )
    body = page.paragraphs([introduction]) + "".join(parts)
    return [Section("selection", "Checkpoint selection", body)]


def _table(run: PlannedRun, references: Mapping[str, float], study: StudyFolder) -> str:
    """The choices for a run; empty if it has no dev scores."""
    scores = read_dev_scores(run.record.folder)
    if not scores:
        return ""
    header, rows = choice_table(
        compare(run.record.folder, scores, references), scores, study.results.heading
    )
    label = f"choices for {study.results.label(run.row)}"
    return page.table(header, rows, label)
