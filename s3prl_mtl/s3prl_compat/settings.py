"""Config blocks of tasks that are experts of s3prl, from the experts' config files."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.s3prl_compat.folders import expert_path, installed_root
from s3prl_mtl.s3prl_compat.task_spec import PREFIX, is_s3prl_task, parse_spec

Block = dict[str, Any]


def parse_specs(specs: Sequence[str]) -> tuple[list[str], dict[str, Block]]:
    """The names of tasks, and the parts of their blocks (`folder`, `config`) stated in the specs.

    Raises:
        UserError: two specs give the same name to different tasks.
    """
    blocks: dict[str, Block] = {}
    for spec in specs:
        name, block = spec, {}
        if is_s3prl_task(spec):
            parsed = parse_spec(spec)
            name = parsed.name
            stated = {"folder": parsed.folder, "config": parsed.config}
            block = {key: value for key, value in stated.items() if value is not None}
        if blocks.setdefault(name, block) != block:
            other = block or blocks[name]
            raise UserError(
                f"Two tasks have the name {name!r}.",
                where="-d",
                fix=f"Rename one: -d {PREFIX}NAME={other.get('config') or other['folder']}.",
                code="duplicate-name",
            )
    return list(blocks), {name: block for name, block in blocks.items() if block}


def block_defaults(
    task: str,
    layers: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any] | None = None,
    deferred: DeferredLog | None = None,
) -> Block:
    """The defaults of a task's block, from the config file of the expert.

    `downstream_expert` is copied from the file; `runner.train_dataloader` becomes the training
    split; of `runner.eval_dataloaders` those with `test` in their names become the test splits and
    the others the dev splits. Everything else in the file is for single-task training and unused.

    Args:
        task: its name, such as `s3prl:ctc`.
        layers: configs, later ones override earlier ones; their blocks of the task may state
            another `folder` or `config` file.
        base: the config of the run to resume. Its block replaces the file, which may have changed
            or gone since.
        deferred: receives the unused parts of the file.

    Returns:
        `folder` and `config`; from the file `train_split`, `dev_splits`, `test_splits` and
        `downstream_expert`.

    Raises:
        UserError: there is no such expert, or it has no settings.
    """
    blocks = [layer[task] for layer in layers if isinstance(layer.get(task), Mapping)]
    folder = str(_last(blocks, "folder") or task.removeprefix(PREFIX))
    home = expert_path(folder)
    config = _last(blocks, "config")
    if config:
        config = os.path.abspath(os.path.expanduser(str(config)))
    saved = (base or {}).get(task)
    if isinstance(saved, Mapping) and (saved.get("folder"), saved.get("config")) == (
        folder,
        config,
    ):
        return copy.deepcopy(dict(saved))
    path = Path(config) if config else home / "config.yaml"
    block: Block = {
        "folder": folder,
        "config": str(path),
    }
    if not config and not path.is_file():
        if not any(given.get("downstream_expert") for given in blocks):
            raise _no_settings(task, home)
        return block | {"config": None}
    content = read_yaml(path, f"the config of task {task}")
    expert = content.pop("downstream_expert", None)
    if not isinstance(expert, Mapping):
        raise UserError(
            f"{path} has no `downstream_expert`.",
            where=f"{task}.config",
            fix="Give the config file of an expert of s3prl.",
            code="file-malformed",
        )
    block["downstream_expert"] = dict(expert)
    runner = content.pop("runner", None) or {}
    block["train_split"] = runner.get("train_dataloader", "train")
    # An empty list means that s3prl evaluates the test split after training.
    splits = [str(split) for split in runner.get("eval_dataloaders", ["dev", "test"]) or ["test"]]
    tests = [split for split in splits if "test" in split]
    others = [split for split in splits if split not in tests]
    # s3prl evaluates only the listed splits: if they are all of one kind they serve as both.
    block["dev_splits"], block["test_splits"] = others or tests, tests or others
    if content and deferred is not None:
        unused = f"{', '.join(sorted(content))} and the step counts of runner"
        deferred.add(
            f"{task}: {unused} in {path} are for single-task training and are not used.",
            level=logging.INFO,
        )
    return block


def check_blocks(layers: Sequence[tuple[Mapping[str, Any], str]], chosen: Sequence[str]) -> None:
    """Refuse command-line settings for an expert of s3prl that is not a task of the run.

    Config files may contain such settings, because they may serve other runs as well.

    Args:
        layers: layers of a config from the command line, each with its flag.
        chosen: names of the tasks.

    Raises:
        UserError: a layer sets something in such a block.
    """
    experts = [task for task in chosen if is_s3prl_task(task)]
    for layer, origin in layers:
        for key in layer:
            if is_s3prl_task(key) and key not in experts:
                raise UserError(
                    f"The run has no task {key!r} to set this for.",
                    where=f"{key} in {origin}",
                    fix=nearest(key, experts) if experts else "Add it to -d, or leave this out.",
                    code="unknown-name",
                )


def _last(blocks: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((block[key] for block in reversed(blocks) if block.get(key)), None)


def _no_settings(task: str, home: Path) -> UserError:
    files = sorted(home.rglob("*.yaml"))
    if files:
        fix = f"Choose one of its files: -d {task}={files[0]}."
    elif home.parent == installed_root():
        fix = (
            "s3prl's published package contains no config files. Use the expert's from s3prl's "
            f"repository (s3prl/downstream/{home.name}) and give it with "
            f'-o "{task}.config=FILE", or -d {PREFIX}{home.name}=FILE.'
        )
    else:
        fix = f'Give a config file of the expert: -o "{task}.config=FILE".'
    listed = ", ".join(str(file.relative_to(home)) for file in files[:5])
    return UserError(
        f"{task} has no settings: {home / 'config.yaml'} does not exist."
        + (f" The folder has {listed}." if files else ""),
        where=f"{task}.config",
        fix=fix,
        code="missing-option",
    )
