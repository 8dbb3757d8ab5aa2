"""`check-corpus`: the size of a corpus, and contradictions in it."""

from __future__ import annotations

import argparse

from rich.table import Table

from s3prl_mtl.cli.parser import add_data_roots, add_manifest, add_rescan, call
from s3prl_mtl.tracking.console import OUTPUT

HAS_ERRORS = 1
"""Exit code if training would refuse the corpus; 2 is a mistake of the user."""


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
    from s3prl_mtl.api.corpora import check_corpus
    from s3prl_mtl.data.corpus_report import size_text

    report = call(check_corpus, arguments)
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
