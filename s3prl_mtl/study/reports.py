"""The reports of a study, of a run, and of the paper's numbers."""

from __future__ import annotations

from pathlib import Path

from s3prl_mtl.fileio.text_tables import markdown_table
from s3prl_mtl.study import page
from s3prl_mtl.study.figures import Curve
from s3prl_mtl.study.page import Section
from s3prl_mtl.study.paper import paper_results, read_paper
from s3prl_mtl.study.report_files import PAGE, ReportFiles
from s3prl_mtl.study.result_sections import result_sections
from s3prl_mtl.study.results import NAMES, Results
from s3prl_mtl.study.run_sections import (
    CurvesOf,
    conflicts_section,
    curves_section,
    layers_section,
    settings_section,
)
from s3prl_mtl.study.selection_section import selection_section
from s3prl_mtl.study.study_results import PlannedRun, StudyFolder
from s3prl_mtl.training.run_record import RunRecord

STYLES = {"a": "dashed", "b1": "strong", "b2": "faint", "c": "plain", "d": "dotted"}
"""Styles of curves, by scenario."""


def paper_report() -> ReportFiles:
    """The report of the paper's own numbers."""
    paper, report = read_paper(), ReportFiles()
    summary = [
        f"The numbers of {paper['source']} ({paper['link']}): HuBERT Base, one run for each.",
        "With a single run, the spread between seeds is unknown: small differences may be chance.",
    ]
    sections = result_sections(report, paper_results())
    report.files[PAGE] = page.page("The paper's numbers", summary, sections)
    return report


def study_report(study: StudyFolder) -> ReportFiles:
    """The report of a study, which may be unfinished."""
    report, results, finished = ReportFiles(), study.results, study.finished
    first = [run for run in finished if run.seed == study.seeds[0]]
    joint = {_label(run, results): run.record for run in first if run.row.scenario in ("b1", "b2")}
    several = len(study.seeds) > 1
    sections = [
        *result_sections(report, results),
        *curves_section(
            report,
            "Training curves",
            "On dev, while the encoder or a head is trained. (b-2) has a line for each left-out "
            "task" + (", and every scenario one for each seed." if several else "."),
            [_dev_curves(number, task, study) for number, task in enumerate(study.tasks)],
        ),
        *selection_section(study),
        *layers_section(
            report,
            {_label(run, results): run.record for run in first},
            f"The runs are those of seed {study.seeds[0]}. " if several else "",
        ),
        *conflicts_section(report, joint, results.heading),
        *settings_section({_label(run, results, several): run.record for run in finished}),
    ]
    title = f"Study {study.folder.resolve().name}"
    report.files[PAGE] = page.page(title, [_summary(study, results)], sections)
    return report


def run_report(folder: Path) -> ReportFiles:
    """The report of a single run.

    Raises:
        UserError: the folder is not that of a run.
    """
    report, record = ReportFiles(), RunRecord(folder)
    name = folder.resolve().name
    metrics = [
        CurvesOf(
            f"curve-{number}",
            task,
            metric,
            _train_and_dev(record, task, metric.name) if metric is not None else [],
        )
        for number, task in enumerate(record.tasks)
        for metric in [record.metric(task)]
    ]
    losses = [
        CurvesOf(f"loss-{number}", task, None, _train_and_dev(record, task, "loss"))
        for number, task in enumerate(record.tasks)
    ]
    sections = [
        _run_results(report, record),
        *curves_section(report, "Training curves", "", metrics),
        *curves_section(report, "Losses", "", losses),
        *layers_section(report, {name: record}),
        *conflicts_section(report, {name: record}, str),
        *settings_section({name: record}),
    ]
    summary = f"Tasks {', '.join(record.tasks)}; step {record.last_step} of {record.total_steps}."
    report.files[PAGE] = page.page(f"Run {name}", [summary], sections)
    return report


def _summary(study: StudyFolder, results: Results) -> str:
    seeds, steps = len(study.seeds), study.settings.steps
    parts = [
        f"Upstream {study.settings.upstream}",
        f"{len(study.tasks)} tasks ({', '.join(map(results.heading, study.tasks))})",
        *([f"{steps} steps"] if steps is not None else []),
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        f"{len(study.finished)} of {len(study.runs)} runs finished",
    ]
    return ", ".join(parts) + "."


def _label(run: PlannedRun, results: Results, with_seed: bool = False) -> str:
    """A run of a study: its row, and the task of a run with a single one."""
    label = results.label(run.row)
    if run.row.scenario in ("a", "c", "d"):
        label += " " + ", ".join(map(results.heading, run.record.tasks))
    return f"{label}, seed {run.seed}" if with_seed else label


def _dev_curves(number: int, task: str, study: StudyFolder) -> CurvesOf:
    """The first headline metric of a task on dev, a curve for each run."""
    found = [(run, metric) for run in study.finished if (metric := run.record.metric(task))]
    curves = []
    for run, metric in found:
        series = run.record.dev(task, metric.name)
        if series:
            scenario = run.row.scenario
            values = list(series.values())
            curves.append(Curve(NAMES[scenario], list(series), values, STYLES[scenario]))
    metric = found[0][1] if found else None
    return CurvesOf(f"curve-{number}", study.results.heading(task), metric, curves)


def _train_and_dev(record: RunRecord, task: str, metric: str) -> list[Curve]:
    return [
        Curve(label, list(series), list(series.values()), style)
        for label, series, style in (
            ("train", record.training(task, metric), "dashed"),
            ("dev", record.dev(task, metric), "strong"),
        )
        if series
    ]


def _run_results(report: ReportFiles, record: RunRecord) -> Section:
    header = ["task", "split", "metric", "before", "result", "weights"]
    rows = [
        [r.task, r.split, r.title, r.shown(r.first), r.shown(r.last), r.last.source]
        for r in record.results
    ]
    report.files["table.md"] = markdown_table(header, rows) + "\n"
    body = page.notice(f"{record.problem.capitalize()}.") if record.problem else ""
    body += page.table(header, rows, "results") if rows else ""
    conditions = {task: record.conditions(task) for task in record.tasks}
    body += page.bullets(f"{task}: {text}." for task, text in conditions.items() if text)
    return Section("results", "Results", f'<div class="results run">{body}</div>')
