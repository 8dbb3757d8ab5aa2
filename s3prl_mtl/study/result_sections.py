"""Sections of the page of a study: its table, and the relations between tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from s3prl_mtl.study import page, tables
from s3prl_mtl.study.figures import heat_map, relation_graph
from s3prl_mtl.study.numbers import shown_effect, shown_value
from s3prl_mtl.study.page import Section
from s3prl_mtl.study.plan import SCENARIOS
from s3prl_mtl.study.relations import (
    Effect,
    Relation,
    effects,
    expected_by_chance,
    ranking,
    relations,
)
from s3prl_mtl.study.report_files import ReportFiles
from s3prl_mtl.study.results import NAMES, Column, Results, Row

LEFT_OUT = '<span class="left-out">X</span>'
EFFECT_LIMIT = 0.3
"""The relative change with the strongest colour."""
EXCEEDS = {True: "yes", False: "no", None: "unknown"}
WIDEST = 0.5
"""Relative changes from here on have the widest arrow."""


def result_sections(report: ReportFiles, results: Results) -> list[Section]:
    """The table and the relations, which need a whole study."""
    found = effects(results)
    report.files |= {
        "table.md": tables.markdown(results),
        "table.tex": tables.tex(results),
        "table.csv": tables.csv_table(results),
        "relations.csv": tables.csv_effects(found),
    }
    sections = [Section("results", "Results", _results_body(results))]
    if found:
        sections.append(
            Section("relations", "Relations between tasks", _relations_body(report, results, found))
        )
    return sections


def _results_body(results: Results) -> str:
    head = "".join(
        f'<th scope="col">{escape(column.heading)}'
        f"<small>{escape(tables.heading(column))}</small></th>"
        for column in results.columns
    )
    before, rows = "", []
    for row in results.rows:
        rule = row.scenario in ("c", "d") and row.scenario != before
        kind = "b1" if row.scenario == "b1" else "rule" if rule else ""
        cells = "".join(f"<td>{_cell(results, row, column)}</td>" for column in results.columns)
        label = escape(results.label(row))
        rows.append(f'<tr class="{kind}"><th scope="row">{label}</th>{cells}</tr>')
        before = row.scenario
    content = (
        f'<table>\n<thead><tr><th scope="col">scenario</th>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
    )
    notice = ""
    if results.missing:
        notice = page.notice(
            f"{tables.missing_runs(results)}; cells that need them are empty, or have fewer seeds.",
            page.details("Which", page.bullets(tables.missing_lines(results))),
        )
    scenarios = dict.fromkeys(row.scenario for row in results.rows)
    meaning = [f"{NAMES[scenario]}: {SCENARIOS[scenario].title}." for scenario in scenarios]
    shown = f'<div class="results">{page.scrolled(content, "results by scenario")}</div>\n'
    return notice + shown + page.bullets([*tables.legend(results), *meaning])


def _cell(results: Results, row: Row, column: Column) -> str:
    cell = results.cell(row, column)
    text = LEFT_OUT if row.left_out == column.task else ""
    if cell.mean is not None:
        mark, mean = results.mark(row, column), shown_value(column, cell.mean)
        text = f'<span class="{mark}">{mean}</span>' if mark else mean
        if cell.deviation is not None:
            text += f"<small>± {shown_value(column, cell.deviation)}</small>"
        note = tables.fewer_seeds(results, row, column)
        text += f"<small>{note}</small>" if note else ""
    if cell.published is not None:
        text += f"<small>[{shown_value(column, cell.published)}]</small>"
    return text


def _relations_body(report: ReportFiles, results: Results, found: Sequence[Effect]) -> str:
    agreed = relations(found)
    strongest = max((abs(relation.value) for relation in agreed), default=0.0)
    strongest = min(strongest, WIDEST)
    tasks = {task: results.heading(task) for task in results.tasks}
    several = len(results.seeds) > 1
    dashed = " Dashed: within the spread between seeds." if several else ""
    if several and any(relation.clear is None for relation in agreed):
        dashed += " Dotted: of unknown spread, as one of the scenarios has a single seed."
    graphs = []
    for name, sign, verb in (("helps", 1, "helps"), ("hurts", -1, "hurts")):
        shown = [relation for relation in agreed if sign * relation.value > 0]
        drawing = relation_graph(name, shown, tasks, name, strongest, several)
        listed = "; ".join(
            f"{tasks[r.helper]} {verb} {tasks[r.task]} by {shown_effect(abs(r.value))[1:]} %"
            for r in shown[:3]
        )
        graphs.append(
            report.draw(
                drawing,
                f"Directed graph of {len(shown)} relations: which task {verb} which. "
                f"The strongest: {listed or 'none'}.",
                f"Who {verb} whom: an arrow leads from a task to those that it {verb}; the wider, "
                f"the stronger.{dashed}",
                _relation_table(shown, tasks, several),
            )
        )
    return "\n".join(
        [
            page.paragraphs(
                [
                    "A task helps another one if that is worse without it: the effect is the "
                    "relative change of the error from (b-1), all tasks, to (b-2), all but one. "
                    "The error is the distance from the best possible value, for example 1 − "
                    "accuracy. Pairs of tasks whose metrics disagree are in neither graph.",
                    *([spread_remark(found)] if several else []),
                ]
            ),
            page.side_by_side(graphs),
            _effects_figure(report, results, found),
            "<h3>Auxiliary tasks for a primary task</h3>",
            _ranking_table(results, found),
        ]
    )


def spread_remark(found: Sequence[Effect]) -> str:
    """The number of effects above the spread, observed and expected by chance."""
    known = [effect for effect in found if effect.spread is not None]
    clear = sum(effect.clear is True for effect in known)
    by_chance = expected_by_chance(found)
    text = (
        f"{clear} of {len(known)} effects on a metric exceed the spread between seeds (the "
        "standard deviation of the difference of two runs). By chance alone about "
        f"{by_chance:.0f} would, if no task had an effect on another and the noise were normal."
    )
    unknown = len(found) - len(known)
    return f"{text} The spread of {unknown} more is unknown." if unknown else text


def _relation_table(shown: Sequence[Relation], tasks: Mapping[str, str], several: bool) -> str:
    rows = [
        [tasks[r.helper], tasks[r.task], shown_effect(r.value), EXCEEDS[r.clear]] for r in shown
    ]
    header = ["task", "on", "effect, %", "exceeds the spread"]
    keep = 4 if several else 3
    return page.table(header[:keep], [row[:keep] for row in rows], "relations")


def _effects_figure(report: ReportFiles, results: Results, found: Sequence[Effect]) -> str:
    by_place = {(effect.helper, effect.column): effect for effect in found}
    helpers = list(dict.fromkeys(effect.helper for effect in found))
    picked = [[by_place.get((helper, column)) for column in results.columns] for helper in helpers]
    names = [results.heading(helper) for helper in helpers]
    several = len(results.seeds) > 1
    drawing = heat_map(
        "effects",
        [[None if effect is None else effect.value for effect in row] for row in picked],
        [f"− {name}" for name in names],
        [f"{column.heading}\n{column.metric.title}" for column in results.columns],
        shown_effect,
        EFFECT_LIMIT,
        [[effect is not None and effect.clear is False for effect in row] for row in picked],
        [[several and effect is not None and effect.clear is None for effect in r] for r in picked],
    )
    header = ["left out", *(column.title for column in results.columns)]
    rows = [
        [name, *(_shown_spread(effect) for effect in row)]
        for name, row in zip(names, picked, strict=True)
    ]
    faint = " Italics: within the spread between seeds." if several else ""
    if several and any(effect.clear is None for effect in found):
        faint += " With a question mark: of unknown spread."
    return report.draw(
        drawing,
        "Heat map of the effect of each task on each metric; the table below has its numbers.",
        "Effect of the task that is left out (row) on each metric, in percent of its error in "
        f"(b-1). Blue, positive: the task helps. Orange, negative: it hurts.{faint} A metric that "
        "is close to perfect changes by many percent with a few utterances.",
        page.table(header, rows, "effects"),
    )


def _shown_spread(effect: Effect | None) -> str:
    if effect is None:
        return ""
    spread = f" ± {shown_effect(effect.spread)[1:]}" if effect.spread is not None else ""
    return shown_effect(effect.value) + spread


def ranking_rows(
    results: Results, found: Sequence[Effect], tasks: Sequence[str]
) -> list[list[str]]:
    """The heading of each primary task, the tasks that help it, and those that hurt it."""
    rows = []
    for task in tasks:
        ranked = ranking(found, task)
        helps = [_ranked(results, one) for one in ranked if one.value > 0]
        hurts = [_ranked(results, one) for one in reversed(ranked) if one.value < 0]
        rows.append([results.heading(task), ", ".join(helps), ", ".join(hurts)])
    return rows


def _ranked(results: Results, relation: Relation) -> str:
    """A task with its effect, and in a study of several seeds whether it exceeds the spread."""
    return f"{results.heading(relation.helper)} {shown_effect(relation.value)}" + (
        {True: "*", False: "", None: "?"}[relation.clear] if len(results.seeds) > 1 else ""
    )


RANKING_LEGEND = "*: exceeds the spread between seeds; ?: of unknown spread."


RANKING = ["primary task", "helped by, the most first, %", "hurt by, the most first, %"]


def _ranking_table(results: Results, found: Sequence[Effect]) -> str:
    text = page.table(RANKING, ranking_rows(results, found, results.tasks), "auxiliary tasks")
    if len(results.seeds) > 1:
        text += page.paragraphs([RANKING_LEGEND])
    return f'<div class="settings ranking">{text}</div>'
