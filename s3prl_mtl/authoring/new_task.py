"""Write the package of a new task, which can be trained without changes."""

from __future__ import annotations

import keyword
import os
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from s3prl_mtl.config import DEFAULT_PATH
from s3prl_mtl.errors import UserError, nearest
from s3prl_mtl.fileio.yaml_files import read_yaml
from s3prl_mtl.registry.plugins import discover_tasks

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_RESERVED = {"all", "config", "args", "run", "featurizer", "gradients"}
"""Names with another meaning for `-d`, `-o` or the files of a run."""


_WORDS = {"corpus_template": "words", "folder": "speech_commands_v0.01"}
KINDS = {
    "classification": {
        **_WORDS,
        "description": "classification of spoken words",
        "labels_text": "Labels of an utterance: `class`, its word. Label space: `classes`, all "
        "words.",
        "labels": '{"class": word}',
        "label_space": '{"classes": self.words()}',
    },
    "regression": {
        **_WORDS,
        "description": "a number for each utterance (here, the letters of a spoken word)",
        "labels_text": "Labels of an utterance: `value`, the number of letters of its word.",
        "labels": '{"value": len(word)}',
        "label_space": "{}",
    },
    "frames": {
        "corpus_template": "recordings",
        "folder": "Libri2Mix",
        "description": "a class for each frame (here, speech or silence)",
    },
    "ctc": {
        **_WORDS,
        "description": "transcription by CTC (here, the letters of a spoken word)",
        "labels_text": "Labels of an utterance: `text`, its word. Label space: `symbols`, all "
        "letters.",
        "labels": '{"text": word}',
        "label_space": '{"symbols": sorted(set("".join(self.words())))}',
    },
}
"""Values of the templates' variables for each kind of task."""


def new_task(
    name: str, directory: str | os.PathLike[str], kind: str = "classification"
) -> list[Path]:
    """Write a package with a task: pyproject.toml, expert, corpus, config, test and README.

    The task trains on the mini corpus, and keeps the contract.

    Args:
        name: of the task, as after `-d`.
        directory: of the package; must not exist, or be empty.
        kind: one of `KINDS`.

    Returns:
        The files that were written.

    Raises:
        UserError: the name is invalid or taken, or the directory is not empty.
    """
    check_name(name)
    if kind not in KINDS:
        raise UserError(
            f"Unknown kind of task {kind!r}.",
            where="--kind",
            fix=nearest(kind, list(KINDS)),
            code="invalid-value",
        )
    root = Path(os.path.abspath(os.path.expanduser(directory)))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        what = "is a file" if not root.is_dir() else "is not empty"
        raise UserError(
            f"{root} {what}.",
            where="DIR",
            fix="Name a folder that does not exist yet.",
            code="file-exists",
        )
    words = {**words_of(name), **KINDS[kind]}
    module = words["module"]
    written = []
    for template, path in {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{kind}-expert.py": f"{module}/__init__.py",
        f"{words['corpus_template']}-corpus.py": f"{module}/corpus.py",
        f"{kind}-config.yaml": f"{module}/config.yaml",
        "test_task.py": f"tests/test_{module}.py",
    }.items():
        source = files("s3prl_mtl.authoring") / "templates" / f"{template}.template"
        target = root / path
        text = Template(source.read_text(encoding="utf-8")).substitute(words)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as cause:
            raise UserError(
                f"The package cannot be written: {cause.strerror}.",
                where=str(target),
                code="file-unwritable",
            ) from cause
        written.append(target)
    return written


def words_of(name: str) -> dict[str, str]:
    """The names in the package of a task: of package, module and classes."""
    title = "".join(part.capitalize() for part in name.split("_"))
    return {
        "name": name,
        "package": f"{name.replace('_', '-')}-task",
        "module": f"{name}_task",
        "expert": f"{title}Task",
        "corpus": f"{title}Corpus",
    }


def check_name(name: str) -> None:
    """Check the name of a new task.

    Raises:
        UserError: it is invalid, reserved or taken.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be the name of a task.",
            where="NAME",
            fix="Use lower-case letters, digits and single underscores; begin with a letter: lid.",
            code="invalid-name",
        )
    # The settings of a task share the top level of the config with these.
    if name in _RESERVED or name in read_yaml(DEFAULT_PATH, "defaults"):
        raise UserError(
            f"{name!r} has another meaning in configs or on the command line.",
            where="NAME",
            fix="Choose another name.",
            code="invalid-name",
        )
    for key, plugin in discover_tasks().items():
        if name == key.rpartition(":")[2]:
            raise UserError(
                f"A task {name!r} exists already.",
                where=f"{plugin.package} {plugin.version}",
                fix="Choose another name; `s3prl-mtl tasks` lists those that are taken.",
                code="duplicate-name",
            )
