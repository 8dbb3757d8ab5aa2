"""Find corpora of the branch's config files in the folder of `--data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_mtl.fileio.deferred_log import DeferredLog

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
"""The settings of `datarc` that are paths, by task; names as in this package."""


def look_in(
    data: str | None, config: Mapping[str, Any], origin: str, deferred: DeferredLog
) -> dict[str, Any]:
    """Remove the paths of corpora that do not exist on this machine from a config.

    The defaults of the tasks, paths in the folder of `--data`, take their place. Without a data
    folder the config is returned unchanged: the error of the corpus then names the path.

    Args:
        data: the data folder, if any.
        config: a translated config of the branch.
        origin: its file, for the remark.
        deferred: receives the removed paths.
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
        missing = {name: datarc[name] for name in names if not _is_usable(datarc.get(name))}
        absent += [f"{task} {name} ({_shown(path)})" for name, path in missing.items()]
        left = {name: value for name, value in datarc.items() if name not in missing}
        kept[task] = {**block, "downstream_expert": {**expert, "datarc": left}}  # type: ignore[dict-item]
    if absent:
        deferred.add(
            f"{origin} names corpora that are not on this machine. They are looked for in the data "
            f"folder, {data}: {', '.join(absent)}."
        )
    return kept


def _is_usable(path: object) -> bool:
    """Whether a path is unset, a reference to another setting, or exists."""
    if isinstance(path, list):
        # Some of several lexicons would be a different lexicon.
        return all(map(_is_usable, path))
    return not isinstance(path, str) or "${" in path or Path(path).expanduser().exists()


def _shown(path: object) -> str:
    return ", ".join(map(str, path)) if isinstance(path, list) else str(path)
