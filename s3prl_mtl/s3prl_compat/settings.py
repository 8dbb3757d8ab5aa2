"""The block of the config of a task that is an expert of s3prl, from the expert's config file."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.deferred_log import Remarks
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.s3prl_compat.folders import expert_path, installed_root
from s3prl_mtl.s3prl_compat.task_spec import PREFIX, is_s3prl_task, parse_spec

Block = dict[str, Any]


def chosen_blocks(words: Sequence[str]) -> tuple[list[str], dict[str, Block]]:
    """The tasks of the words after `-d`, and what the words say of their blocks.

    Raises:
        UserError: two words give the same name to different things.
    """
    names: list[str] = []
    blocks: dict[str, Block] = {}
    for word in words:
        name, block = word, {}
        if is_s3prl_task(word):
            parsed = parse_spec(word)
            name = parsed.name
            if parsed.folder is not None:
                block = {"folder": parsed.folder}
                if parsed.config is not None:
                    block["config"] = parsed.config
        if name in names and blocks.get(name, {}) != block:
            raise UserError(
                f"Two tasks would both be named {name!r}.",
                where="-d",
                fix=f"Name one of them: -d {PREFIX}NAME={_place(block or blocks[name])}.",
            )
        if name not in names:
            names.append(name)
        if block:
            blocks[name] = block
    return names, blocks


def block_defaults(
    task: str,
    layers: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any] | None = None,
    remarks: Remarks | None = None,
) -> Block:
    """The defaults of a task's block: what its config file says, in our words.

    Of the file, `downstream_expert` is taken as it is; `runner.train_dataloader` is the training
    split; those of `runner.eval_dataloaders` with `test` in their names are the test splits, the
    others the dev splits. The rest of the file is for a run of that task alone.

    Args:
        task: its name, such as `s3prl:ctc`.
        layers: configs, the later over the earlier; their blocks of the task may name another
            `folder` or `config` file.
        base: the config of the run that goes on. What it has of the task takes the place of the
            file, which may have changed or gone since.
        remarks: take what of the file is not used; None where nobody needs to hear it.

    Returns:
        `folder`, `config`, `train_split`, `dev_splits`, `test_splits`, `downstream_expert`.

    Raises:
        UserError: there is no expert, or no settings for it.
    """
    blocks = [layer[task] for layer in layers if isinstance(layer.get(task), Mapping)]
    saved = (base or {}).get(task)
    folder = _last(blocks, "folder") or task.removeprefix(PREFIX)
    home = expert_path(str(folder))
    config = _last(blocks, "config")
    if config:
        config = os.path.abspath(os.path.expanduser(str(config)))
    if isinstance(saved, Mapping) and (saved.get("folder"), saved.get("config")) == (
        folder,
        config,
    ):
        return copy.deepcopy(dict(saved))
    path = Path(config) if config else home / "config.yaml"
    block: Block = {
        "folder": str(folder),
        "config": str(path),
        "train_split": "train",
        "dev_splits": None,
        "test_splits": None,
        "downstream_expert": {},
    }
    if not config and not path.is_file():
        if not any(given.get("downstream_expert") for given in blocks):
            raise _no_settings(task, home)
        block["config"] = None
        return block
    content = read_yaml(path, f"the config of task {task}")
    expert = content.pop("downstream_expert", None)
    if not isinstance(expert, Mapping):
        raise UserError(
            f"{path} has no `downstream_expert`.",
            where=f"{task}.config",
            fix="Give the config file of an expert of s3prl.",
        )
    block["downstream_expert"] = dict(expert)
    runner = content.pop("runner", None) or {}
    block["train_split"] = runner.get("train_dataloader", "train")
    # Where s3prl lists none, it measures a run on its test split when all is done.
    splits = [str(split) for split in runner.get("eval_dataloaders", ["dev", "test"]) or ["test"]]
    tests = [split for split in splits if "test" in split]
    others = [split for split in splits if split not in tests]
    # s3prl evaluates what it lists and nothing else: a run ends with the same splits.
    block["dev_splits"], block["test_splits"] = others or tests, tests or others
    if content and remarks is not None:
        unused = f"{', '.join(sorted(content))} and the counts of runner"
        remarks.add(
            f"{task}: of {path}, {unused} are for a run of that task alone and not used.",
            level=logging.INFO,
        )
    return block


def check_blocks(told: Sequence[tuple[Mapping[str, Any], str]], chosen: Sequence[str]) -> None:
    """Refuse settings of an expert of s3prl that no task of the run goes by.

    What the command line says is meant for this run; a file may serve others as well.

    Args:
        told: layers of a config from the command line, each with the flag that it is from.
        chosen: the names of the tasks.

    Raises:
        UserError: a layer sets something in such a block.
    """
    experts = [task for task in chosen if is_s3prl_task(task)]
    for layer, origin in told:
        for key in layer:
            if is_s3prl_task(key) and key not in experts:
                raise UserError(
                    f"There is no task {key!r} in this run, whose block this would set.",
                    where=origin,
                    fix=nearest(key, experts) if experts else "Name it after -d, or leave it out.",
                )


def _last(blocks: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((block[key] for block in reversed(blocks) if block.get(key)), None)


def _place(block: Mapping[str, Any]) -> str:
    return str(block.get("config") or block["folder"])


def _no_settings(task: str, home: Path) -> UserError:
    files = sorted(home.rglob("*.yaml"))
    beside = ", ".join(str(file.relative_to(home)) for file in files[:5])
    if files:
        fix = f"Name one of these: -d {PREFIX}{task.removeprefix(PREFIX)}={files[0]}."
    else:
        fix = f'Name a config file of the expert: -o "{task}.config=FILE".'
        if home.parent == installed_root():
            fix = (
                "s3prl's package on the registry carries no config files. Take the expert's from "
                f"s3prl's repository (s3prl/downstream/{home.name}) and name it: "
                f'-o "{task}.config=FILE", or -d {PREFIX}{home.name}=FILE.'
            )
    return UserError(
        f"{task} has no settings: there is no {home / 'config.yaml'}."
        + (f" It has {beside}." if files else ""),
        where=f"{task}.config",
        fix=fix,
    )
