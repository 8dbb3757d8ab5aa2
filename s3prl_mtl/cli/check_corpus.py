"""`check-corpus`: the size of a corpus, and contradictions in it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from s3prl_mtl.cli.parser import add_data_roots, add_manifest, add_rescan
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.console import OUTPUT

if TYPE_CHECKING:
    from s3prl_mtl.config import RunConfig
    from s3prl_mtl.data.corpus_report import CorpusReport

HAS_ERRORS = 1
"""Exit code if training would refuse the corpus; 2 is a mistake of the user."""

# Of the features; the smallest that every head takes.
_WIDTH = 8
_FRAME_SAMPLES = 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK", help="an installed task")
    add_data_roots(parser)
    parser.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    parser.add_argument("-o", "--override", metavar="KEY=VALUE,,...", help="settings of the task")
    add_manifest(parser)
    parser.add_argument("--cache_dir", metavar="DIR", help="folder of scanned manifests")
    add_rescan(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print counts and findings. Exit with 1 if training would refuse the corpus."""
    from s3prl_mtl.data.corpus_report import size_text

    report = check_corpus(arguments)
    table = Table("split", "utterances", "hours", "speakers", "classes", "published")
    for counts in report.splits:
        numbers = [counts.utterances, f"{counts.hours:.2f}", counts.speakers, counts.classes]
        published = "" if counts.official is None else size_text(counts.official)
        table.add_row(
            counts.split, *("" if number is None else str(number) for number in numbers), published
        )
    OUTPUT.print(table)
    for note in report.notes:
        OUTPUT.print(note, markup=False, soft_wrap=True)
    for finding in report.findings:
        kind, style = ("error", "red") if finding.certain else ("warning", "yellow")
        OUTPUT.print(f"{kind}: {finding}", style=style, markup=False, soft_wrap=True)
    errors = len(report.mistakes())
    OUTPUT.print(f"{arguments.name}: {errors} errors, {len(report.findings) - errors} warnings")
    if errors:
        raise SystemExit(HAS_ERRORS)


def check_corpus(arguments: argparse.Namespace) -> CorpusReport:
    """The report of all splits that a run of the task uses.

    Raises:
        UserError: the corpus is missing or cannot be read, or the task has none to check.
    """
    from s3prl_mtl.api.run_inputs import manifest_settings
    from s3prl_mtl.config import build_config, parse_tasks, resolve
    from s3prl_mtl.data.corpus_cache import forget_listings
    from s3prl_mtl.tasks.base import TaskExpert
    from s3prl_mtl.training.build import build_expert
    from s3prl_mtl.training.preflight import choose_root, corpus_problems
    from s3prl_mtl.training.task import Task

    names = parse_tasks(arguments.name, flag="TASK")
    if len(names) > 1:
        raise UserError(
            f"{arguments.name!r} names {len(names)} tasks.",
            where="TASK",
            fix="Check one task at a time.",
            code="invalid-value",
        )

    def use(root: str | Path | None) -> tuple[tuple[RunConfig, type], list[UserError]]:
        flags = {"downstream": names, "data": root, "cache_dir": arguments.cache_dir}
        given = {key: value for key, value in flags.items() if value is not None}
        given |= manifest_settings(arguments.manifest)
        config = resolve(build_config(arguments.config, given, arguments.override))
        ((name, block),) = config.tasks.items()
        expert_class = load_task(name, block.package, folder=block.folder)
        return (config, expert_class), corpus_problems(config, {name: expert_class}).get(name, [])

    config, expert_class = choose_root(arguments.data or [], use)
    if arguments.rescan:
        forget_listings(config.cache_dir)
    ((name, block),) = config.tasks.items()
    with tempfile.TemporaryDirectory() as folder:
        expert = build_expert(
            expert_class,
            config,
            name,
            Path(folder),
            upstream_dim=_WIDTH,
            upstream_rate=_FRAME_SAMPLES,
        )
        report = None
        if isinstance(expert, TaskExpert):
            task = Task.from_settings(name, expert, block)
            report = expert.report([task.train_split, *task.dev_splits, *task.test_splits])
    if report is None:
        raise UserError(
            f"The task {name} reads its data itself, so its corpus cannot be checked.",
            where="TASK",
            fix="Derive the expert from `s3prl_mtl.TaskExpert` and declare its `corpus_type`.",
            code="not-supported",
        )
    return report
