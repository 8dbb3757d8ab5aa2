"""What `s3prl:...` after `-d` means: a name, a folder with an expert, and its config file."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.s3prl_compat.folders import installed_experts, installed_root

PREFIX = "s3prl:"
EXPERT_FILE = "expert.py"

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ExpertSpec:
    """A word `s3prl:[NAME=]PLACE`.

    Args:
        name: of the task, `s3prl:` included.
        folder: a folder of the installed s3prl by its name, or any other by its absolute path.
            None: the word is only a name, and the config may say what folder it stands for.
        config: the config file, absolute, where PLACE is one.
    """

    name: str
    folder: str | None = None
    config: str | None = None

    def __str__(self) -> str:
        if self.folder is None:
            return self.name
        return f"{PREFIX}{self.name.removeprefix(PREFIX)}={self.config or self.folder}"


def is_s3prl_task(word: str) -> bool:
    """Whether a word after `-d`, or the name of a task, is that of an expert of s3prl."""
    return word.startswith(PREFIX)


def parse_spec(word: str) -> ExpertSpec:
    """The parts of `s3prl:[NAME=]PLACE`.

    PLACE is a folder of the installed s3prl (`ctc`), any folder with an `expert.py` (it has a
    `/`), or a config file (it has a `/`, or ends in `.yaml`) in or below one of these
    (`ctc/snips.yaml`). The task is named after the folder, unless NAME is given. A config file that
    lies elsewhere is one of the installed s3prl's expert NAME.

    Raises:
        UserError: there is no such folder or file, or no name can be made of it.
    """
    name, place = _split(word)
    if not place:
        raise UserError(
            f"{word!r} names no expert.",
            where="-d",
            fix="For example -d s3prl:fluent_commands, or -d s3prl:/path/to/folder.",
        )
    if not _is_path(place):
        return ExpertSpec(_task_name(name or place, word), place if name else None)
    path = _find(place, word)
    home = path if path.is_dir() else _home_of(path, name, word)
    config = None if path.is_dir() else str(path)
    root = installed_root()
    inside = root is not None and home.parent == root
    label = name or home.name
    return ExpertSpec(_task_name(label, word), home.name if inside else str(home), config)


def canonical_spec(word: str) -> str:
    """The same word whatever the working folder: its paths are absolute."""
    return str(parse_spec(word))


def task_name(word: str) -> str:
    """The name under which a run keeps the task of a word."""
    return parse_spec(word).name


def _split(word: str) -> tuple[str | None, str]:
    """NAME, if there is one, and PLACE."""
    rest = word.removeprefix(PREFIX)
    name, equals, place = rest.partition("=")
    # A path may have a = of its own.
    return (name, place) if equals and "/" not in name else (None, rest)


def _is_path(place: str) -> bool:
    named = place in (".", "..") or place.startswith("~") or place.endswith((".yaml", ".yml"))
    return named or "/" in place


def _task_name(label: str, word: str) -> str:
    if not _NAME.fullmatch(label):
        raise UserError(
            f"{label!r} cannot be the name of a task: letters, digits, _ and - can.",
            where=f"-d {word}",
            fix=f"Give it a name: -d {shlex.quote(f'{PREFIX}NAME={_split(word)[1]}')}.",
        )
    return PREFIX + label


def _find(place: str, word: str) -> Path:
    path = Path(place).expanduser().absolute()
    root = installed_root()
    for candidate in (path, root / place if root is not None else path):
        if candidate.exists():
            return candidate.resolve()
    raise UserError(
        f"There is no folder or file {path}.",
        where=f"-d {word}",
        fix="Give a folder with an expert.py, or a config file in one. A comma ends the path: one "
        f'that has commas is given in a file of -c, `"{PREFIX}NAME": {{folder: PATH}}`, with -d '
        f"{PREFIX}NAME.",
    )


def _home_of(config: Path, name: str | None, word: str) -> Path:
    """The folder of the expert that a config file belongs to."""
    for folder in config.parents:
        if (folder / EXPERT_FILE).is_file():
            return folder
    experts = installed_experts()
    if name in experts:
        return experts[name]
    said = f", and the installed s3prl has no expert {name!r}" if name else ""
    raise UserError(
        f"No folder above {config} has an {EXPERT_FILE}{said}.",
        where=f"-d {word}",
        fix=f"Say whose it is: -d {PREFIX}EXPERT={config} for an expert of the installed s3prl, or "
        f'-d {PREFIX}NAME=FOLDER -o "{PREFIX}NAME.config={config}" for one in any FOLDER.',
    )
