"""Where the corpora of the branch's files are: where they say, or in the folder of `--data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_mtl.fileio.deferred_log import Remarks

_PATHS = {
    "asr": ("libri_root",),
    "pr": ("libri_root", "lexicon"),
    "sf": ("snips_root",),
    "ks": ("speech_commands_root", "speech_commands_test_root"),
    "ic": ("file_path",),
    "sid": ("file_path", "meta_data"),
    "er": ("root",),
    "sv": ("file_path", "dev_trials", "test_trials"),
    "sd": ("data_dir",),
}
"""The settings of each task's `datarc` that are paths, by the names that they have here."""


def look_in(
    data: str | None, config: Mapping[str, Any], origin: str, remarks: Remarks
) -> dict[str, Any]:
    """A config without the paths of corpora that are not on this machine.

    The defaults, which look for them in the folder of `--data`, then hold. A path that is there
    stays as it is, and without a data folder all stay: an error will name them.

    Args:
        data: the folder, if one is given.
        config: a translated file of the branch.
        origin: the file, for the remark.
        remarks: take what is looked for elsewhere.
    """
    kept = dict(config)
    if not data:
        return kept
    absent: list[str] = []
    for task, names in _PATHS.items():
        block = config.get(task)
        expert = block.get("downstream_expert") if isinstance(block, Mapping) else None
        datarc = expert.get("datarc") if isinstance(expert, Mapping) else None
        if not isinstance(datarc, Mapping):
            continue
        gone = {name: datarc[name] for name in names if not _is_there(datarc.get(name))}
        absent += [f"{task} {name} ({_say(path)})" for name, path in gone.items()]
        left = {name: value for name, value in datarc.items() if name not in gone}
        kept[task] = {**block, "downstream_expert": {**expert, "datarc": left}}  # type: ignore[dict-item]
    if absent:
        remarks.add(
            f"{origin} names corpora that are not on this machine. They are looked for in the data "
            f"folder, {data}: {', '.join(absent)}."
        )
    return kept


def _is_there(path: object) -> bool:
    """Whether a setting may stay: what is none, refers to another setting, or exists."""
    if isinstance(path, list):
        # Half of several lexicons would be another lexicon.
        return all(map(_is_there, path))
    return not isinstance(path, str) or "${" in path or Path(path).expanduser().exists()


def _say(path: object) -> str:
    return ", ".join(map(str, path)) if isinstance(path, list) else str(path)
