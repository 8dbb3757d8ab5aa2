"""Results of runs and studies: tables, reports, checkpoint selection, affinity."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.api.calls import PathLike, callable_from_python, listed, output_folder
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.paths import require_absent
from s3prl_mtl.fileio.text_tables import csv_text

if TYPE_CHECKING:
    from s3prl_mtl.study.dev_scores import DevScores
    from s3prl_mtl.study.results import Results
    from s3prl_mtl.study.selection import Choice
    from s3prl_mtl.training.affinity import Affinity

logger = logging.getLogger(__name__)

PAPER_FOLDER = "paper-report"
"""Default folder of the report of the paper's numbers."""


@callable_from_python
def results(runs: PathLike | Sequence[PathLike], *, all: bool = False) -> list[dict[str, Any]]:
    """The last value of every metric of runs: the command `results`.

    Args:
        runs: folders of runs.
        all: every evaluated split and every metric, not only the headline metrics on test.

    Returns:
        a record for each value: run, task, split, metric, value, step, checkpoint. Rates are
        fractions, None if not finite.

    Raises:
        UserError: a folder is not that of a run.
    """
    from s3prl_mtl.tracking.results_table import result_records

    return result_records([Path(run) for run in listed(runs)], all)


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: the page, `report.html`; tables and figures are beside it.
        results: the results of a study, or the paper's; None for a single run.
    """

    path: Path
    results: Results | None


@callable_from_python
def report(
    folder: PathLike | None = None,
    *,
    paper: bool = False,
    primary: str | None = None,
    out: PathLike | None = None,
) -> Report:
    """Write tables, figures and a page of a study or a run: the command `report`.

    Args:
        folder: of a study or a run.
        paper: report the numbers of the paper instead.
        primary: a task that must be in the study, whose auxiliary tasks the command ranks.
        out: where to write; by default `folder`, or `PAPER_FOLDER`.

    Returns:
        the page and the results that it shows.

    Raises:
        UserError: the folder is neither that of a study nor that of a run, or has no such task.
    """
    from s3prl_mtl.study.paper import paper_results
    from s3prl_mtl.study.reports import paper_report, run_report, study_report
    from s3prl_mtl.study.study_results import read_study

    if (folder is None) != paper:
        raise UserError(
            "Give the folder of a study or a run, or --paper, and not both.",
            where="OUT",
            fix="For example s3prl-mtl report OUT.",
            code="missing-option" if folder is None else "conflicting-options",
        )
    place = None if folder is None else Path(folder)
    target = place or Path(PAPER_FOLDER)
    if out is not None:
        target = Path(out)
        output_folder(target, "-o")
    if place is not None and not (place / "study.json").is_file():
        if not (place / "metrics.jsonl").is_file():
            read_study(place)  # the error that names both
        if primary:
            raise UserError(
                "A single run does not show which task helps which.",
                where="--primary",
                fix="Give the folder of a study.",
                code="conflicting-options",
            )
        return Report(run_report(place).write(target), None)
    study = None if place is None else read_study(place)
    found = paper_results() if study is None else study.results
    if primary and primary not in found.tasks:
        raise UserError(
            f"There is no task {primary!r}.",
            where=f"--primary {primary}",
            fix=nearest(primary, found.tasks),
            code="unknown-name",
        )
    files = paper_report() if study is None else study_report(study)
    return Report(files.write(target), found)


@dataclass(frozen=True)
class Selection:
    """The checkpoints that rules choose.

    Attributes:
        choices: of each rule: the step of each task, its dev score there, and the cost against the
            task's own best. Empty for `average:K`.
        scores: the dev scores of each task.
        checkpoint: the file that `average:K` wrote.
        averaged: the checkpoints that it is the mean of.
    """

    choices: Sequence[Choice]
    scores: Mapping[str, DevScores]
    checkpoint: Path | None = None
    averaged: Sequence[Path] = ()


@callable_from_python
def select(
    run: PathLike,
    *,
    by: str | None = None,
    reference: PathLike | Sequence[PathLike] | None = None,
    out: PathLike | None = None,
) -> Selection:
    """Choose one checkpoint for all tasks by their dev scores: the command `select`.

    Args:
        run: the folder of a run.
        by: `per-task`, `mean-gain`, `rank`, `worst-case`, `last`, or `average:K`, which writes a
            checkpoint; by default all rules, to compare them.
        reference: runs of single heads on the frozen encoder, or their folder.
        out: the file of `average:K`; by default `average-K.ckpt` in the run.

    Returns:
        the choices.

    Raises:
        UserError: the run has no dev scores, or a rule or a reference is missing.
    """
    from s3prl_mtl.study import selection
    from s3prl_mtl.study.dev_scores import read_dev_scores

    place = Path(run)
    _require_run(place)
    count = selection.parse_average(by) if by else None
    if by and count is None and by not in selection.RULES:
        raise UserError(
            f"There is no rule {by!r}.",
            where="--by",
            fix=nearest(by, [*selection.RULES, "average:5"]),
            code="unknown-name",
        )
    if count is not None:
        return _average(place, count, out)
    if out:
        raise UserError(
            "Only the rule average:K writes a checkpoint.",
            where="--out",
            code="conflicting-options",
        )
    scores = read_dev_scores(place)
    if not scores:
        raise UserError(
            f"{place} has no dev scores yet.",
            where=str(place),
            fix="They come with the first evaluation (runner.eval_step).",
            code="undefined-metric",
        )
    references = _references(place, [Path(path) for path in listed(reference)])
    choices = (
        [selection.choose(by, scores, references)]
        if by
        else selection.compare(place, scores, references)
    )
    return Selection(choices, scores)


def _require_run(folder: Path) -> None:
    """Check that a folder is that of a run.

    Raises:
        UserError: it is not.
    """
    if (folder / "config.yaml").is_file():
        return
    if (folder / "study.json").is_file():
        what, fix = "is the folder of a study, not of a run.", f"Choose a run: {folder}/b1/seed0."
    else:
        what = "is not the folder of a run."
        fix = "Give a folder with config.yaml and metrics.jsonl, such as OUT/b1/seed0."
    raise UserError(f"{folder} {what}", where=f"RUN {folder}", fix=fix, code="file-missing")


def _references(run: Path, given: Sequence[Path]) -> dict[str, float]:
    """The best dev score of each task with a frozen encoder."""
    from s3prl_mtl.study.dev_scores import best_dev_scores

    for path in given:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder.", where="--reference", code="file-missing")
    runs: list[Path] = []
    for path in given or _of_study(run):
        runs += [path] if (path / "metrics.jsonl").is_file() else sorted(path.iterdir())
    files = ("metrics.jsonl", "config.yaml")
    return best_dev_scores(run for run in runs if all((run / name).is_file() for name in files))


def _of_study(run: Path) -> list[Path]:
    """The folder with the runs of scenario a of the same seed, if the run is of a study."""
    from s3prl_mtl.study.settings import FILE

    run = run.resolve()
    for out in run.parents:
        if (out / FILE).is_file():
            seed = next((p for p in run.relative_to(out).parts if p.startswith("seed")), "")
            return [path for path in [out / "a" / seed] if seed and path.is_dir()]
    return []


def _average(run: Path, count: int, out: PathLike | None) -> Selection:
    from s3prl_mtl.checkpoint import files as checkpoints
    from s3prl_mtl.study.dev_scores import read_dev_scores
    from s3prl_mtl.study.selection import average_checkpoints

    path = Path(out) if out else run / f"average-{count}.ckpt"
    require_absent(path, f"--out {path}")
    averaged, files = average_checkpoints(run, count)
    checkpoints.save(averaged, path)
    return Selection([], read_dev_scores(run), path, files)


@dataclass(frozen=True)
class MeasuredAffinity:
    """The effect of a step on one task on the losses of the others.

    Attributes:
        affinity: the matrix with its standard errors.
        checkpoint: the weights that it was measured at.
        groups: the best division of the tasks, if one was asked for.
        folder: with `affinity.csv` and `affinity.png`.
    """

    affinity: Affinity
    checkpoint: Path
    groups: list[list[str]] | None
    folder: Path

    def records(self) -> list[dict[str, Any]]:
        """A record for each pair: checkpoint, step_on, loss_of, affinity, standard_error."""
        return [{"checkpoint": str(self.checkpoint), **pair} for pair in self.affinity.records()]

    def csv(self) -> str:
        """The records as comma-separated values."""
        return csv_text(FIELDS, self.records())

    def scaled(self) -> tuple[list[list[float]], str]:
        """The affinities in a unit that leaves two digits of the largest one between two tasks.

        The diagonal, which is larger, does not count.
        """
        between = self.affinity.values.nan_to_num(0.0).fill_diagonal_(0.0).abs().max().item()
        exponent = math.floor(math.log10(between)) - 1 if between > 0 else -2
        return (self.affinity.values / 10.0**exponent).tolist(), f"{10.0 ** (exponent + 2):g} %"


FIELDS = ["checkpoint", "step_on", "loss_of", "affinity", "standard_error"]


@callable_from_python
def affinity(
    run: PathLike,
    *,
    steps: int = 10,
    lr: float | None = None,
    groups: int | None = None,
    data: PathLike | None = None,
    cache_dir: PathLike | None = None,
    device: str | None = None,
    out: PathLike | None = None,
) -> MeasuredAffinity:
    """Measure how a step on one task changes the losses of others: the command `affinity`.

    Args:
        run: the folder of a run, or one of its `states-*.ckpt` files.
        steps: batches of each task.
        lr: learning rate; by default that of the run.
        groups: also divide the tasks into so many groups.
        data: folder of the corpora, if it has moved.
        cache_dir: folder of downloads and scanned corpora.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        out: folder of `affinity.csv` and `affinity.png`; by default that of the run.

    Returns:
        the affinities, and the division into groups.

    Raises:
        UserError: there is no such run, it has one task, or a corpus is not usable.
    """
    from s3prl_mtl.checkpoint import files as checkpoints
    from s3prl_mtl.checkpoint.compatibility import check_evaluate
    from s3prl_mtl.config import build_config
    from s3prl_mtl.training.affinity import measure_affinity, open_run, require_several_tasks

    if steps < 1:
        raise UserError(
            f"{steps} is not a positive number.", where=f"--steps {steps}", code="invalid-value"
        )
    saved, path = checkpoints.load_newest(Path(run), flag="RUN", set_aside=False)
    # Settings of the run may name tasks that a best checkpoint does not have.
    require_several_tasks(saved, str(path))
    if groups is not None and not 0 < groups <= len(saved.tasks):
        raise UserError(
            f"{len(saved.tasks)} tasks cannot be divided into {groups} groups.",
            where=f"--groups {groups}",
            fix=f"Give a number from 1 to {len(saved.tasks)}.",
            code="invalid-value",
        )
    given = {
        "data": None if data is None else os.fspath(data),
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
        "device": device,
        "optimizer.lr": lr,
        "downstream": list(saved.tasks),
    }
    flags = {key: value for key, value in given.items() if value is not None}
    config = build_config(flags=flags, base=saved.config)
    check_evaluate(saved, config)
    folder = Path(out) if out else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        runner = open_run(saved, config, Path(scratch), where=str(path))
        measured = measure_affinity(runner, steps)
    divided = measured.groups(groups) if groups is not None else None
    found = MeasuredAffinity(measured, path, divided, folder)
    _write_affinity(found, f"{path.name}, {steps} batches")
    return found


def _write_affinity(found: MeasuredAffinity, what: str) -> None:
    from s3prl_mtl.fileio.atomic import atomic_path, replace_text
    from s3prl_mtl.tracking.heat_maps import heat_maps

    scaled, unit = found.scaled()
    title = f"Affinity in {unit}: a step on the row, the loss of the column ({what})"
    image = heat_maps({"": scaled}, found.affinity.tasks, title, limit=100.0, shown=shown_affinity)
    replace_text(found.folder / "affinity.csv", found.csv())
    with atomic_path(found.folder / "affinity.png") as partial:
        image.save(partial)
    logger.info("Wrote affinity.csv and affinity.png in %s.", os.path.abspath(found.folder))


def shown_affinity(value: float) -> str:
    return f"{value:+.1f}" if abs(value) < 100 else f"{value:+.0f}"
