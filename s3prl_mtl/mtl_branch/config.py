"""Translate a config file of the branch to a config of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.deferred_log import DeferredLog
from s3prl_mtl.mtl_branch.block import BranchBlock, Notes
from s3prl_mtl.mtl_branch.corpora import look_in
from s3prl_mtl.mtl_branch.tasks import read_task, split_of, task_of

_EXPERT_OF_S3PRL = "s3prl:"
_SCHEDULED = "_with_schedule"
_ADAPTIVE = ("adaptive", "adaptive_number_ratio", "adaptive_size_ratio", "max_n_time_masks")


def translate(
    values: dict[str, Any], file: str | Path, deferred: DeferredLog, data: str | None = None
) -> dict[str, Any]:
    """Translate the content of a `-c` file; return one that is not of the branch unchanged.

    The branch's files have a block for each task with `folder`, the name of s3prl's expert. Keys
    without a meaning here are left out and listed, with the reasons, in one remark a file.

    Args:
        values: content of the file.
        file: its path.
        deferred: receives the keys that are left out.
        data: the folder of `--data`, for corpora that do not exist at the path in the file.

    Raises:
        UserError: a key that the branch does not have, or a head that does not exist here.
    """
    blocks = [key for key, value in values.items() if _is_task(key, value)]
    if not blocks:
        return values
    file = Path(file)
    notes = Notes()
    translated: dict[str, Any] = {
        key: value
        for key, value in values.items()
        if key not in (*blocks, "runner", "optimizer", "scheduler", "specaug")
    }
    runner = dict(_mapping(values.get("runner") or {}, "runner", file))
    names: dict[str, str] = {}
    loops: dict[str, BranchBlock] = {}
    for key in blocks:
        try:
            task = task_of(BranchBlock(values[key], key, file, Notes()))
        except UserError as mistake:
            notes.add(key, f"the block is left out: {mistake}")
            continue
        if task in names:
            notes.add(key, f"the block is left out: {names[task]!r} is the task {task!r} too.")
            continue
        names[task] = key
        block = BranchBlock(values[key], key, file, notes)
        block.take("folder")
        if task != key:
            notes.add(key, f"it is the task {task!r} here.")
        loops[task] = block.part("looprc")
        splits = _splits(loops[task], key, task)
        evaluated = [split for listed in splits.values() for split in listed]
        expert = read_task(task, block, evaluated)
        if task == "asr":
            sets = {f"{kind}_splits": expert["datarc"].get(kind) for kind in ("dev", "test")}
            splits |= {kind: names for kind, names in sets.items() if names}
        translated[task] = {**splits, "downstream_expert": expert}
        for step in ("log_step", "eval_step"):
            if step in loops[task]:
                runner.setdefault(f"{step}s", []).append(loops[task].take(step))
        block.finish()
    translated["runner"] = _runner(runner, file, notes)
    if "optimizer" in values:
        translated["optimizer"] = _optimizer(values["optimizer"], file)
    # In the branch, an absent section is switched off.
    translated["scheduler"] = values.get("scheduler")
    translated["specaug"] = _specaug(values.get("specaug"), file, notes)
    lines = notes.lines()
    if lines:
        deferred.add(
            f"{file} is a config of s3prl's multi-task branch. These keys have no meaning here:"
            + "".join(f"\n  {line}" for line in lines)
        )
    return look_in(data, translated, str(file), deferred)


def _is_task(key: str, value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and "folder" in value
        and "downstream_expert" not in value
        and not key.startswith(_EXPERT_OF_S3PRL)
    )


def _splits(loop: BranchBlock, key: str, task: str) -> dict[str, list[str]]:
    """The dev and test splits of `eval_dataloaders`, by key of the task's block."""
    listed = loop.take("eval_dataloaders") or []
    if not isinstance(listed, list):
        raise UserError(
            f"eval_dataloaders must be a list of splits, not {listed!r}.",
            where=f"{key}.looprc.eval_dataloaders in {loop.file}",
            code="wrong-type",
        )
    listed = list(dict.fromkeys(split_of(task, str(split)) for split in listed))
    tests = [split for split in listed if split.startswith("test")]
    devs = [split for split in listed if split not in tests]
    if devs and tests:
        loop.notes.add(
            f"{key}.looprc.eval_dataloaders",
            "test splits are evaluated after the last step only (runner.test_last).",
        )
    elif tests:
        loop.notes.add(
            f"{key}.looprc.eval_dataloaders", "without a dev split the task's own one is taken."
        )
    found = {"dev_splits": devs, "test_splits": tests}
    return {kind: splits for kind, splits in found.items() if splits}


def _runner(runner: dict[str, Any], file: Path, notes: Notes) -> dict[str, Any]:
    """The section `runner`; of `log_step` and `eval_step`, one a task there, the smallest."""
    for step in ("log_step", "eval_step"):
        values = runner.pop(f"{step}s", [])
        if not values:
            continue
        if not all(type(value) is int for value in values):
            raise UserError(
                f"looprc.{step} must be an integer in every task.",
                where=f"looprc.{step} in {file}",
                code="wrong-type",
            )
        runner.setdefault(step, min(values))
        if len(set(values)) > 1:
            notes.add(f"looprc.{step}", f"all tasks have the same one, {runner[step]}.")
    if "eval_dataloaders" in runner:
        del runner["eval_dataloaders"]
        notes.add("runner.eval_dataloaders", "each task has splits of its own.")
    return runner


def _mapping(values: object, section: str, file: Path) -> Mapping[Any, Any]:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{section} must be a mapping, not {values!r}.",
            where=f"{section} in {file}",
            code="wrong-type",
        )
    return values


def _optimizer(values: object, file: Path) -> dict[str, Any]:
    """The section `optimizer`; `TorchOptim` stands for an optimizer of torch.

    Raises:
        UserError: an optimizer of s3prl with a built-in schedule.
    """
    mapping = _mapping(values, "optimizer", file)
    settings = {str(key): value for key, value in mapping.items()}
    name = settings.get("name")
    if name == "TorchOptim":
        if "torch_optim_name" not in settings:
            raise UserError(
                "TorchOptim needs the name of an optimizer of torch.",
                where=f"optimizer.torch_optim_name in {file}",
                fix="For example AdamW.",
                code="missing-option",
            )
        settings["name"] = settings.pop("torch_optim_name")
    elif isinstance(name, str) and name.endswith(_SCHEDULED):
        raise UserError(
            f"The optimizer {name!r} has a built-in schedule, which is not supported.",
            where=f"optimizer.name in {file}",
            fix="Use `name: AdamW`, and linear_schedule_with_warmup as the scheduler.",
            code="not-supported",
        )
    return settings


def _specaug(values: object, file: Path, notes: Notes) -> Any:
    if not isinstance(values, Mapping):
        return values
    settings = {str(key): value for key, value in values.items()}
    if settings.get("adaptive"):
        raise UserError(
            "Adaptive masking is not supported.",
            where=f"specaug.adaptive in {file}",
            fix="Set it to false: the numbers of masks are then num_time_mask and num_freq_mask.",
            code="not-supported",
        )
    for key in _ADAPTIVE:
        if key in settings:
            del settings[key]
            notes.add(f"specaug.{key}", "masks are not adaptive.")
    return settings
