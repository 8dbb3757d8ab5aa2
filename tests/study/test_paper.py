"""The paper's table: every printed mark, and the signs of the relations."""

from __future__ import annotations

import pytest

from s3prl_mtl.study.numbers import shown_value
from s3prl_mtl.study.paper import paper_results
from s3prl_mtl.study.relations import effects, ranking, relations
from s3prl_mtl.study.results import Row

COLUMNS = ["asr", "pr", "sf", "sf", "sd", "er", "ic", "ks", "sv", "sid"]
PRINTED = {
    "asr": "x - - - + - + + - -",
    "pr": "- x - - + - + + - +",
    "sf": "+ + x x + - - - - -",
    "sd": "- + + + x - + - - -",
    "er": "+ + - - + x - - - -",
    "ic": "+ + + - + - x - + -",
    "ks": "+ + + - + - + x - -",
    "sv": "+ + + + + - - + x -",
    "sid": "+ + - - + + - - - x",
}
"""Bold (+) and underlined (-) numbers of the rows (b-2), as printed."""
ALL_TASKS = "6.22 3.61 87.56 26.76 4.93 67.28 99.60 97.34 6.76 90.86"
"""The row (b-1), as printed."""


def test_all_80_printed_marks_are_reproduced() -> None:
    results = paper_results()
    assert [column.task for column in results.columns] == COLUMNS
    signs = {"better": "+", "worse": "-", None: "x"}
    reproduced = {
        left_out: " ".join(signs[results.mark(Row("b2", left_out), c)] for c in results.columns)
        for left_out in PRINTED
    }
    assert reproduced == PRINTED
    assert sum(mark in "+-" for marks in PRINTED.values() for mark in marks.split()) == 80


def test_the_numbers_are_shown_as_printed() -> None:
    results = paper_results()
    shown = [shown_value(c, results.cell(Row("b1"), c).mean or 0) for c in results.columns]
    assert " ".join(shown) == ALL_TASKS


def test_a_task_helps_where_the_metric_is_worse_without_it() -> None:
    results = paper_results()
    found = effects(results)
    assert len(found) == 80 and all(effect.clear is None for effect in found)
    for effect in found:
        place = results.columns.index(effect.column)
        assert (effect.value > 0) == (PRINTED[effect.helper].split()[place] == "-")


def test_an_effect_is_the_relative_change_of_the_error() -> None:
    found = {
        (effect.helper, effect.column.task): effect.value for effect in effects(paper_results())
    }
    assert found["sid", "sv"] == pytest.approx((9.00 - 6.76) / 6.76)
    # 90.86 to 85.06 %: the error grows from 9.14 to 14.94 %.
    assert found["sv", "sid"] == pytest.approx((14.94 - 9.14) / 9.14)


def test_a_pair_whose_metrics_disagree_is_no_relation() -> None:
    found = {(one.helper, one.task): one for one in relations(effects(paper_results()))}
    # Without ic and ks, the F1 of slots is better and the error of their values worse.
    assert ("ic", "sf") not in found and ("ks", "sf") not in found
    assert len(found) == 72 - 2
    assert found["sv", "pr"].value < 0 < found["pr", "asr"].value


def test_the_ranking_begins_with_the_most_helpful_task() -> None:
    ranked = ranking(effects(paper_results()), "sv")
    assert ranked[0].helper == "sid" and ranked[-1].helper == "ic"
    assert len(ranked) == 8
