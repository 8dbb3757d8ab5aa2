"""The report of a study and of a run: the table, missing runs, spread, and the page itself."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import scipy.stats

from s3prl_mtl.cli.main import main
from s3prl_mtl.study.figures import LINES
from s3prl_mtl.study.record import Record, lock, read_record, write_record
from s3prl_mtl.study.relations import chance, effects, expected_by_chance, relations
from s3prl_mtl.study.reports import STYLES
from s3prl_mtl.study.result_sections import EXCEEDS, ranking_rows, spread_remark
from s3prl_mtl.study.results import Row
from s3prl_mtl.study.study_results import read_study
from s3prl_mtl.study.tables import legend
from s3prl_mtl.tracking.recorder import Recorder, Report
from s3prl_mtl.training.run_dir import mark_finished, unmark_finished
from s3prl_mtl.training.run_record import RunRecord
from tests.mistakes import user_error
from tests.study.studies import write_run, write_study

TASKS = ["ks", "er"]
SEEDS = [0, 1, 2]
NOISE = [-0.01, 0.0, 0.01]


def values(**means: float) -> dict[tuple[str, str | None, str, int], float]:
    """Values with a deviation of 0.01 for `a_ks`, `b2_er_ks` (er is left out) and so on."""
    found: dict[tuple[str, str | None, str, int], float] = {}
    for name, mean in means.items():
        scenario, *left_out, task = name.split("_")
        for seed, noise in zip(SEEDS, NOISE, strict=True):
            found[scenario, left_out[0] if left_out else None, task, seed] = mean + noise
    return found


VALUES = values(
    a_ks=0.80,
    a_er=0.50,
    b1_ks=0.90,
    b1_er=0.60,
    b2_er_ks=0.70,
    b2_ks_er=0.605,
    c_ks_ks=0.6,
    c_er_er=0.4,
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", TASKS, SEEDS, VALUES)


def cells(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / "table.csv").open(newline="") as lines:
        return {(r["scenario"], r["left_out"], r["task"]): r for r in csv.DictReader(lines)}


def test_a_cell_is_the_mean_over_the_seeds_with_its_standard_deviation(study: Path) -> None:
    assert main(["report", str(study)]) == 0
    cell = cells(study)["(b-2)", "er", "ks"]
    assert float(cell["mean"]) == pytest.approx(0.70)
    assert float(cell["standard_deviation"]) == pytest.approx(statistics.stdev(NOISE))
    assert cell["seeds"] == "3" and cell["mark"] == "worse"
    assert cells(study)["(b-2)", "ks", "er"]["mark"] == "better"


def test_the_terminal_says_how_to_read_the_table(study: Path, capsys) -> None:
    assert main(["report", str(study)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    lines = legend(read_study(study).results, means_only=True)
    assert sum(f"{len(SEEDS)} seeds" in line for line in lines) == 1
    assert all(line in shown for line in lines)


def test_the_papers_number_stands_beside_the_frozen_encoders(study: Path) -> None:
    assert main(["report", str(study)]) == 0
    found = cells(study)
    assert float(found["(a)", "", "ks"]["paper"]) == pytest.approx(0.963)
    # With two tasks, (b-1) is not the paper's.
    assert found["(b-1)", "", "ks"]["paper"] == ""


def test_only_effects_above_the_spread_are_clear(study: Path) -> None:
    found = {effect.helper: effect for effect in effects(read_study(study).results)}
    assert found["er"].value == pytest.approx((0.30 - 0.10) / 0.10) and found["er"].clear
    # A change of 0.005 with a standard deviation of 0.01 in both scenarios.
    assert found["ks"].value == pytest.approx(-0.005 / 0.40) and not found["ks"].clear
    assert found["ks"].spread == pytest.approx(2**0.5 * statistics.stdev(NOISE) / 0.40)
    assert [one.clear for one in relations(list(found.values()))] == [True, False]


def test_chance_alone_exceeds_the_spread_as_often_as_the_page_says(study: Path) -> None:
    for seeds in (2, 3, 5, 10):
        exact = 2 * scipy.stats.t.sf(seeds**0.5, 2 * seeds - 2)
        assert chance(seeds) == pytest.approx(exact, rel=1e-9)
    found = effects(read_study(study).results)
    assert expected_by_chance(found) == pytest.approx(2 * chance(3))
    remark = "1 of 2 effects on a metric exceed the spread"
    assert main(["report", str(study)]) == 0
    assert remark in (study / "report.html").read_text()


def test_the_ranking_says_which_effects_exceed_the_spread(study: Path) -> None:
    results = read_study(study).results
    assert ranking_rows(results, effects(results), TASKS) == [
        ["KS", "ER +200*", ""],
        ["ER", "", "KS −1.3"],
    ]


def test_means_that_differ_by_rounding_are_equal(tmp_path: Path) -> None:
    correct = {"b1": (70, 70, 72), "b2": (70, 71, 71)}  # of 96
    means = [statistics.fmean(n / 96 for n in counts) for counts in correct.values()]
    assert means[0] != means[1]
    ks = {
        (scenario, "er" if scenario == "b2" else None, "ks", seed): counts[seed] / 96
        for scenario, counts in correct.items()
        for seed in SEEDS
    }
    results = read_study(write_study(tmp_path / "study", TASKS, SEEDS, VALUES | ks)).results
    (column,) = [column for column in results.columns if column.task == "ks"]
    assert results.mark(Row("b2", "er"), column) is None
    (effect,) = [effect for effect in effects(results) if effect.helper == "er"]
    assert effect.value == 0 and not effect.clear and relations([effect]) == []


def test_missing_and_unfinished_runs_are_named_and_leave_their_cells_empty(
    tmp_path: Path, capsys
) -> None:
    removed = [k for k in VALUES if k[0] == "c" or (k[:2] == ("b2", "er") and k[3] > 0)]
    kept = {key: value for key, value in VALUES.items() if key not in removed}
    folder = write_study(tmp_path / "study", TASKS, SEEDS, kept)
    write_run(folder / "c/seed0/ks", {"ks": 0.5}, steps=10)
    results = read_study(folder).results
    unfinished = results.missing["c/seed0/ks"]
    assert unfinished.startswith("waiting") and re.findall(r"\d+", unfinished) == ["10", "20"]
    assert {name for name in results.missing if name.startswith("b2")} == {
        "b2/seed1/without-er",
        "b2/seed2/without-er",
    }
    (ks,) = [column for column in results.columns if column.task == "ks"]
    assert results.cell(Row("c"), ks).mean is None
    assert len(results.cell(Row("b2", "er"), ks).values) == 1
    # Without a second seed the spread is unknown.
    assert {effect.helper: effect.clear for effect in effects(results)} == {"ks": False, "er": None}
    assert main(["report", str(folder), "--primary", "ks"]) == 0
    (ranked,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  ER "))
    assert "helps" in ranked and EXCEEDS[None] in ranked
    remark = spread_remark(effects(results))
    page = (folder / "report.html").read_text()
    assert remark in page and f">{EXCEEDS[None]}</td>" in page
    for name in ("table.md", "report.html"):
        assert all(missing in (folder / name).read_text() for missing in results.missing)
    # A study without gaps does not need the words on unknown spreads and different seeds.
    complete = write_study(tmp_path / "complete", TASKS, SEEDS, VALUES)
    assert main(["report", str(complete)]) == 0
    found = read_study(complete).results
    (added,) = set(legend(results)) - set(legend(found))
    assert html.escape(added) in page
    *_, unknown = re.findall(r"\d+", remark)
    assert unknown == "1" and remark.count(".") == spread_remark(effects(found)).count(".") + 1
    for more, fewer in zip(captions(folder), captions(complete), strict=True):
        assert more.count(".") == fewer.count(".") + 1


def captions(folder: Path) -> list[str]:
    """Of the three figures on the relations of tasks."""
    text = (folder / "report.html").read_text()
    relations_of_tasks = text[text.index('<section id="relations"') :].partition("</section>")[0]
    found = re.findall(r"<figcaption>(.*?)</figcaption>", relations_of_tasks, re.DOTALL)
    assert len(found) == 3
    return found


def test_runs_that_do_not_count_are_named_with_their_state(study: Path) -> None:
    # Trained again: the runs that started from its heads and, through them, scenario c of er.
    mark_finished(study / "a/seed0/ks", 20)
    failed = study / "c/seed1/ks"
    unmark_finished(failed)
    failure = "The corpus is empty."
    write_record(replace(read_record(failed) or Record({}), failure=failure), failed)
    shutil.rmtree(study / "c/seed2/ks")  # only begun
    held = lock(study / "c/seed2/ks")
    try:
        missing = read_study(study).results.missing
    finally:
        os.close(held or 0)
    outdated = {"b1/seed0", "b2/seed0/without-er", "c/seed0/er"}
    assert set(missing) == outdated | {"c/seed1/ks", "c/seed2/ks"}
    assert "again" in missing["b1/seed0"] and failure in missing["c/seed1/ks"]
    assert missing["c/seed2/ks"] == "running"
    (column, *_) = read_study(study).results.columns
    assert 0 not in read_study(study).results.cell(Row("b1"), column).values


def test_a_task_without_any_run_keeps_its_column(tmp_path: Path) -> None:
    kept = {key: value for key, value in VALUES.items() if key[0] == "a" and key[2] == "ks"}
    results = read_study(write_study(tmp_path / "study", TASKS, SEEDS, kept)).results
    assert results.tasks == TASKS
    assert main(["report", str(tmp_path / "study")]) == 0


def test_the_conditions_of_the_results_come_from_the_tasks(study: Path) -> None:
    conditions = read_study(study).results.conditions
    assert "fold1" in conditions["er"] and "ks" not in conditions


def test_scenario_d_has_a_row_for_each_alpha(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", TASKS, SEEDS, VALUES, alphas=[0.75, 0.25])
    results = read_study(study).results
    assert results.rows[-2:] == [Row("d", alpha=0.25), Row("d", alpha=0.75)]
    (ks,) = [column for column in results.columns if column.task == "ks"]
    means = [results.cell(row, ks).mean for row in results.rows[-2:]]
    assert means == pytest.approx([0.25 * 0.6, 0.75 * 0.6])


def test_a_metric_without_a_declared_direction_has_no_mark_and_no_effect(study: Path) -> None:
    for config in study.rglob("config.yaml"):
        config.write_text(config.read_text().replace("package: s3prl-mtl", "package: not-there"))
    results = read_study(study).results
    assert all(column.metric.better == "" for column in results.columns)
    assert results.cell(Row("b1"), results.columns[0]).mean == pytest.approx(0.90)
    assert effects(results) == []
    assert not any(results.mark(row, column) for row in results.rows for column in results.columns)
    # Numbers of another package's task of the same name are not the paper's.
    assert all(cell.published is None for cell in results.cells.values())


@pytest.mark.parametrize("missing", ["format", "settings"])
def test_a_study_file_of_another_form_is_named(study: Path, missing: str) -> None:
    content = json.loads((study / "study.json").read_text())
    del content[missing]
    (study / "study.json").write_text(json.dumps(content))
    with user_error("file-malformed", where=r"study\.json"):
        read_study(study)


@pytest.mark.parametrize(
    "words", [[], ["OUT", "--paper"], ["OUT"], ["--paper", "--primary", "nope"]]
)
def test_mistakes_of_the_command_line(words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    study = write_study(folder / "study", TASKS, SEEDS, VALUES)
    run = study / "b1" / "seed0"
    assert main(["report", "--paper", "-o", str(folder / "paper")]) == 0
    assert main(["report", str(study)]) == 0
    assert main(["report", str(run)]) == 0
    return {"paper": folder / "paper", "study": study, "run": run}


def test_a_page_is_self_contained_and_every_figure_has_a_text_alternative(pages) -> None:
    for name, folder in pages.items():
        page = Page(folder / "report.html")
        assert not {"script", "iframe", "img", "object"} & {tag for tag, _ in page.elements}, name
        for tag, attributes in page.elements:
            for key in ("src", "href", "xlink:href"):
                link = attributes.get(key) or "#"
                assert link.startswith(("#", "data:,")), (name, tag, link)
        assert "url(http" not in (folder / "report.html").read_text()
        identifiers = [a["id"] for _, a in page.elements if "id" in a]
        assert len(identifiers) == len(set(identifiers)), name
        figures = list(page.all("figure"))
        drawings = [a for a in page.all("svg") if a.get("role") == "img"]
        assert len(figures) == len(drawings) == len(list((folder / "figures").glob("*.svg")))
        assert all(drawing.get("aria-label") for drawing in drawings)
        assert sum(tag == "details" for tag, _ in page.elements) >= len(figures)


def test_the_page_of_a_study_has_every_section(pages) -> None:
    sections = {
        name: [s["id"] for s in Page(f / "report.html").all("section")] for name, f in pages.items()
    }
    assert sections["paper"] == ["results", "relations"]
    assert sections["study"] == [
        "results",
        "relations",
        "training-curves",
        "selection",
        "layers",
        "conflicts",
        "settings",
    ]
    assert sections["run"] == [
        "results",
        "training-curves",
        "losses",
        "layers",
        "conflicts",
        "settings",
    ]


def test_the_cost_of_each_rule_is_shown_for_every_joint_run(study: Path) -> None:
    with Recorder(study / "b1/seed0") as recorder:
        # ks overfits after step 20, where it has an accuracy of 0.89; er improves on 0.59.
        for task, accuracy in (("ks", 0.50), ("er", 0.60)):
            recorder.write(Report(task, "dev", [("acc", accuracy, 25)]))
    assert main(["report", str(study)]) == 0
    text = (study / "report.html").read_text()
    section = text[text.index('<section id="selection"') : text.index('<section id="layers"')]
    for row in ("(b-1) all tasks", "(b-2) all but KS", "(b-2) all but ER", ">KS accuracy %<"):
        assert row in section
    assert "last\nstep 25" in section and "50.00\n(-39.00)" in section
    assert "mean-gain\nstep 20" in section and "59.00\n(-1.00)" in section


def test_curves_of_each_scenario_look_different() -> None:
    assert len(set(STYLES.values())) == len(STYLES) and set(STYLES.values()) <= set(LINES)
    assert len({repr(line) for line in LINES.values()}) == len(LINES)


def test_an_unfinished_run_has_a_report_that_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a & <b>", {"ks": 0.9}, steps=10)
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    problem = RunRecord(run).problem
    assert problem is not None and problem[1:] in text
    assert re.findall(r"\d+", problem) == ["10", "20"]
    assert "a &amp; &lt;b&gt;" in text and "<b>" not in text
    assert "training-curves" in [
        section["id"] for section in Page(run / "report.html").all("section")
    ]


def test_figures_are_the_same_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        assert main(["report", "--paper", "-o", str(tmp_path / name)]) == 0
        written.append({p.name: p.read_bytes() for p in (tmp_path / name / "figures").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {
        f"{n}.{e}" for n in ("helps", "hurts", "effects") for e in ("svg", "png")
    }


def test_the_papers_report_has_a_folder_of_its_own_and_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--paper"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["paper-report"]
    assert main(["report", "--paper", "-o", "paper-report/report.html"]) == 2
