"""Parse specs of s3prl's experts, `s3prl:[NAME=]PLACE`, as typed after `-d`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.folders import EXPERT_FILE, installed_experts, installed_root

PREFIX = "s3prl:"

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ExpertSpec:
    """A parsed spec.

    Args:
        name: of the task, with `s3prl:`.
        folder: the name of a folder in the installed s3prl, or an absolute path. None: the spec
            is only a name, and the config may state the folder.
        config: the absolute path of the config file, if PLACE is one.
    """

    name: str
    folder: str | None = None
    config: str | None = None

    def __str__(self) -> str:
        if self.folder is None:
            return self.name
        return f"{PREFIX}{self.name.removeprefix(PREFIX)}={self.config or self.folder}"


def is_s3prl_task(spec: str) -> bool:
    """Whether a spec or the name of a task is that of an expert of s3prl."""
    return spec.startswith(PREFIX)


def parse_spec(spec: str) -> ExpertSpec:
    """Parse `s3prl:[NAME=]PLACE`.

    PLACE is a folder of the installed s3prl (`ctc`), any folder with an `expert.py` (it contains a
    `/`), or a config file (it contains a `/` or ends in `.yaml`) in or below one of these
    (`ctc/snips.yaml`). The task has the name of the folder unless NAME is given. A config file
    elsewhere is for the expert NAME of the installed s3prl.

    Raises:
        UserError: there is no such folder or file, or it gives no valid name.
    """
    name, place = _split(spec)
    if not place:
        raise UserError(
            f"{spec!r} lacks the name of an expert.",
            where=f"-d {spec}",
            fix="For example -d s3prl:fluent_commands, or -d s3prl:/path/to/folder.",
            code="missing-option",
        )
    if not _is_path(place):
        return ExpertSpec(_task_name(name or place, spec), place if name else None)
    path = _find(place, spec)
    folder = path if path.is_dir() else _folder_of_config(path, name, spec)
    config = None if path.is_dir() else str(path)
    root = installed_root()
    installed = root is not None and folder.parent == root
    return ExpertSpec(
        _task_name(name or folder.name, spec), folder.name if installed else str(folder), config
    )


def canonical_spec(spec: str) -> str:
    """The same spec with absolute paths, independent of the working folder."""
    return str(parse_spec(spec))


def task_name(spec: str) -> str:
    """The name that a run gives to the task of a spec."""
    return parse_spec(spec).name


def _split(spec: str) -> tuple[str | None, str]:
    """NAME, if given, and PLACE."""
    rest = spec.removeprefix(PREFIX)
    name, equals, place = rest.partition("=")
    # A path may contain = as well.
    return (name, place) if equals and "/" not in name else (None, rest)


def _is_path(place: str) -> bool:
    named = place in (".", "..") or place.startswith("~") or place.endswith((".yaml", ".yml"))
    return named or "/" in place


def _task_name(label: str, spec: str) -> str:
    if not _NAME.fullmatch(label):
        raise UserError(
            f"{label!r} is not a valid name for a task; use letters, digits, _ and -.",
            where=f"-d {spec}",
            fix=f"Give it a name: -d {shlex.quote(f'{PREFIX}NAME={_split(spec)[1]}')}.",
            code="invalid-name",
        )
    return PREFIX + label


def _find(place: str, spec: str) -> Path:
    path = Path(place).expanduser().absolute()
    root = installed_root()
    for candidate in (path, root / place if root is not None else path):
        if candidate.exists():
            return candidate.resolve()
    raise UserError(
        f"The folder or file {path} does not exist.",
        where=f"-d {spec}",
        fix=f"Give a folder with an {EXPERT_FILE}, or a config file in one. If the path contains "
        f'commas, write `"{PREFIX}NAME": {{folder: PATH}}` to a file for -c and give -d '
        f"{PREFIX}NAME.",
        code="file-missing",
    )


def _folder_of_config(config: Path, name: str | None, spec: str) -> Path:
    """The folder of the expert that a config file is for."""
    for folder in config.parents:
        if (folder / EXPERT_FILE).is_file():
            return folder
    experts = installed_experts()
    if name in experts:
        return experts[name]
    also = f", and the installed s3prl has no expert {name!r}" if name else ""
    raise UserError(
        f"No folder above {config} has an {EXPERT_FILE}{also}.",
        where=f"-d {spec}",
        fix=f"Give -d {PREFIX}EXPERT={config} for an expert of the installed s3prl, or "
        f'-d {PREFIX}NAME=FOLDER -o "{PREFIX}NAME.config={config}" for one in FOLDER.',
        code="file-missing",
    )
