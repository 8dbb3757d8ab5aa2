"""`manifest`: write the corpus of a task as tables, an example of own data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from s3prl_mtl.cli.parser import add_data_roots
from s3prl_mtl.errors import UserError
from s3prl_mtl.registry.plugins import load_task
from s3prl_mtl.tracking.console import OUTPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK", help="an installed task")
    add_data_roots(parser)
    parser.add_argument("-c", "--config", metavar="YAML", action="append", default=[])
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="a folder")


def run(arguments: argparse.Namespace) -> None:
    """Write a CSV file for each split, and print the flags that train on them.

    Raises:
        UserError: the corpus is missing, or the task takes no tables.
    """
    from s3prl_mtl.config import build_config, parse_tasks, resolve
    from s3prl_mtl.data.tables import write_table
    from s3prl_mtl.fileio.atomic import replace_text
    from s3prl_mtl.training.preflight import choose_root, corpus_problems

    name = parse_tasks(arguments.name, flag="TASK")[0]

    def use(root: str | Path | None) -> tuple[tuple[type, dict[str, object]], list[UserError]]:
        flags = {"downstream": [name], **({} if root is None else {"data": root})}
        config = resolve(build_config(arguments.config, flags))
        block = config.tasks[name]
        expert = load_task(name, block.package, folder=block.folder)
        datarc = block.downstream_expert.get("datarc") or {}
        return (expert, datarc), corpus_problems(config, {name: expert}).get(name, [])

    expert, datarc = choose_root(arguments.data or [], use)
    table_type = getattr(expert, "table_type", None)
    if table_type is None:
        raise UserError(
            f"The task {name} takes no tables.",
            where=f"TASK {name}",
            fix="Set `table_type` of its expert (docs/own-data.md).",
            code="not-supported",
        )
    corpus = expert.make_corpus(datarc)  # type: ignore[attr-defined]
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = []
    settings = {}
    for split in corpus.splits:
        path = arguments.out / f"{split}.csv"
        rows = table_type.rows_of(corpus, split)
        for row in rows:
            row["path"] = os.path.relpath(row["path"], arguments.out)
        write_table(path, rows)
        for setting, text in table_type.side_files(corpus, split).items():
            file = arguments.out / f"{setting}-{split}.txt"
            replace_text(file, text)
            settings[f"{name}.downstream_expert.datarc.{setting}.{split}"] = file
        written.append(f"{split}={path}")
        OUTPUT.print(f"{path}: {len(rows)} rows", markup=False, soft_wrap=True)
    flags = f"--manifest {name}:{','.join(written)}"
    if settings:
        flags += f" -o {',,'.join(f'{key}={file}' for key, file in settings.items())}"
    OUTPUT.print(flags, markup=False, soft_wrap=True)
