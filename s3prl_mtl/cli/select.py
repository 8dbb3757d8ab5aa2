"""`select`: which checkpoint of a run each rule would choose, and what that costs each task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from rich.table import Table

    from s3prl_mtl.study.dev_scores import DevScores
    from s3prl_mtl.study.selection import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "--by",
        metavar="RULE",
        help="per-task, mean-gain, rank, worst-case, last, or average:K, which writes a "
        "checkpoint (default: compare the rules)",
    )
    parser.add_argument(
        "--reference",
        metavar="RUN",
        type=Path,
        action="append",
        help="runs of single heads on the frozen encoder, or their folder; for a run of a study, "
        "those of its scenario a by default",
    )
    parser.add_argument(
        "--out",
        metavar="CKPT",
        type=Path,
        help="of average:K (default RUN/average-K.ckpt)",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, fractions")


def run(arguments: argparse.Namespace) -> None:
    """Show what the rules choose; with `--by`, how to evaluate the choice on test.

    Raises:
        UserError: the run has no dev scores, a rule or a reference is missing.
    """
    from s3prl_mtl.errors import nearest
    from s3prl_mtl.study import selection
    from s3prl_mtl.study.dev_scores import read_dev_scores

    count = selection.parse_average(arguments.by) if arguments.by else None
    if arguments.by and count is None and arguments.by not in selection.RULES:
        raise UserError(
            f"There is no rule {arguments.by!r}.",
            where="--by",
            fix=nearest(arguments.by, [*selection.RULES, "average:5"]),
            code="unknown-name",
        )
    if count is not None:
        _average(arguments, count)
        return
    if arguments.out:
        raise UserError(
            "Only the rule average:K writes a checkpoint.",
            where="--out",
            code="conflicting-options",
        )
    scores = read_dev_scores(arguments.run)
    if not scores:
        raise UserError(
            f"{arguments.run} has no dev scores yet.",
            where=str(arguments.run),
            fix="They come with the first evaluation (runner.eval_step).",
            code="undefined-metric",
        )
    references = _references(arguments)
    choices = (
        [selection.choose(arguments.by, scores, references)]
        if arguments.by
        else selection.compare(arguments.run, scores, references)
    )
    if arguments.json:
        print(json.dumps([_record(choice) for choice in choices], indent=2))
        return
    OUTPUT.print(choices_table(choices, scores))
    made = {choice.rule for choice in choices}
    left_out = [rule for rule in selection.RULES if not arguments.by and rule not in made]
    if left_out:
        OUTPUT.print(f"Without --reference: no {' and no '.join(left_out)}.", highlight=False)
    if arguments.by:
        for line in _how_to_evaluate(arguments.run, choices[0]):
            OUTPUT.print(line, soft_wrap=True, markup=False, highlight=False)


def choices_table(choices: Sequence[Choice], scores: Mapping[str, DevScores]) -> Table:
    """The dev score of each task by each rule, with the cost against its own best below."""
    from rich.table import Table

    from s3prl_mtl.study.selection import choice_table

    (first, *others), rows = choice_table(choices, scores)
    table = Table(padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _record(choice: Choice) -> dict[str, Any]:
    return {
        "rule": choice.rule,
        "steps": dict(choice.steps),
        "dev": dict(choice.values),
        "cost": dict(choice.costs),
    }


def _references(arguments: argparse.Namespace) -> dict[str, float]:
    """The best dev score of each task with a frozen encoder."""
    from s3prl_mtl.study.dev_scores import best_dev_scores

    given = arguments.reference
    for path in given or ():
        if not path.is_dir():
            raise UserError(f"{path} is not a folder.", where="--reference", code="file-missing")
    runs: list[Path] = []
    for path in given if given else _of_study(arguments.run):
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


def _how_to_evaluate(run: Path, choice: Choice) -> list[str]:
    """The command that evaluates a choice on test."""
    step = choice.step
    if step is None or choice.rule == "per-task":
        return [f"On test: s3prl-mtl evaluate -e {run} --best"]
    file = run / f"states-{step}.ckpt"
    if not file.is_file():
        return [
            f"The run has no {file.name} any more. Train with -o runner.max_keep=N to keep the "
            "last N checkpoints."
        ]
    return [f"On test: s3prl-mtl evaluate -e {file} -p {run / choice.rule}"]


def _average(arguments: argparse.Namespace, count: int) -> None:
    from s3prl_mtl.checkpoint import files as checkpoints
    from s3prl_mtl.study.dev_scores import read_dev_scores
    from s3prl_mtl.study.selection import average_checkpoints

    path = arguments.out or arguments.run / f"average-{count}.ckpt"
    if path.exists():
        raise UserError(
            f"{path} exists and is not overwritten.",
            where=f"--out {path}",
            fix="Choose another name, or remove it first.",
            code="file-exists",
        )
    averaged, files = average_checkpoints(arguments.run, count)
    checkpoints.save(averaged, path)
    names = ", ".join(file.name for file in files)
    evaluate = f"s3prl-mtl evaluate -e {path} -p {path.with_suffix('')}"
    lines = [f"Wrote {path}, the mean of {names}.", f"On test: {evaluate}"]
    if path.parent == arguments.run:
        scores = read_dev_scores(arguments.run)
        splits = ",".join(f"{task}:{score.split}" for task, score in scores.items())
        if splits:
            lines.append(f"On dev, to compare it with the others: {evaluate} -t {splits}")
    for line in lines:
        OUTPUT.print(line, soft_wrap=True, markup=False, highlight=False)
