"""Repositories of Hugging Face: their revision, and modelling code of their own (`auto_map`).

Such code is executed only if the user asks for it, and only at a revision that cannot change.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_mtl.errors import UserError
from s3prl_mtl.upstreams.hubert.transformers_format import HUGGING_FACE

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
FLAG = "--trust_remote_code"
USED = ("AutoConfig", "AutoModel")
"""The classes of `auto_map` that an encoder is built from."""


@dataclass(frozen=True)
class Repository:
    """A folder, or a repository on the hub.

    Attributes:
        name: the absolute path of the folder, or the name of the repository.
        revision: branch, tag or commit; None for a folder, and for the default branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository:
        """The folder `text`, or a name on the hub, such as `NAME` or `NAME@REVISION`.

        Raises:
            UserError: the name or the revision is empty, or a folder has a revision.
        """
        expanded = os.path.expanduser(text)
        if os.path.isdir(expanded):
            return cls(os.path.abspath(expanded))
        name, at, revision = text.rpartition("@")
        if not at:
            name, revision = text, ""
        if not name or (at and not revision):
            raise UserError(
                "The name or the revision of the model is missing.",
                where=f"-u {HUGGING_FACE}{text}",
                fix=f"For example -u {HUGGING_FACE}facebook/wav2vec2-base, or NAME@REVISION.",
                code="missing-option",
            )
        if at and os.path.isdir(os.path.expanduser(name)):
            raise UserError(
                "A folder has no revision.",
                where=f"-u {HUGGING_FACE}{text}",
                fix=f"Leave out @{revision}.",
                code="conflicting-options",
            )
        return cls(name, revision or None)

    @property
    def is_folder(self) -> bool:
        return os.path.isabs(self.name)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def may_execute_code(
    repository: Repository,
    settings: Mapping[str, Any],
    is_known: bool,
    trust: bool,
    where: str,
) -> bool:
    """Whether the encoder is built by the code of its repository; with a warning if it is.

    Args:
        repository: of the encoder.
        settings: its `config.json`.
        is_known: transformers has a class for it.
        trust: the user gave the flag.
        where: the flag or file that names it, for errors.

    Raises:
        UserError: the code is needed and may not be executed: the flag is missing, the revision is
            not a commit, or the code is in another repository, which the commit does not fix.
    """
    classes = settings.get("auto_map") or {}
    references = [str(classes[name]) for name in USED if name in classes]
    if not references or (is_known and not trust):
        return False
    files = sorted({f"{ref.rpartition('--')[2].split('.')[0]}.py" for ref in references})
    listed = ", ".join(files)
    pinned = repository.is_folder or COMMIT.fullmatch(repository.revision or "") is not None
    how = "" if pinned else f" and the full hash of a commit: -u {HUGGING_FACE}{repository.name}@"
    how += "" if pinned else "<40 hexadecimal digits>"
    if not trust:
        raise UserError(
            f"{repository} has modelling code of its own ({listed}), which is not executed.",
            where=where,
            fix=f"Read these files. If you trust them and what they import, give {FLAG}{how}.",
            code="code-untrusted",
        )
    others = {ref.rpartition("--")[0] for ref in references} - {"", repository.name}
    if others:
        raise UserError(
            f"The modelling code of {repository} ({listed}) is in another repository, "
            f"{', '.join(sorted(others))}, of which no commit is given.",
            where=where,
            fix="Download both into one folder, correct `auto_map` in its config.json, and give "
            f"the folder with {FLAG}.",
            code="code-untrusted",
        )
    if not pinned:
        raise UserError(
            f"The modelling code of {repository} ({listed}) may change: its revision is not the "
            "full hash of a commit.",
            where=where,
            fix=f"Give a commit whose files you have read{how.removeprefix(' and the full hash')}.",
            code="code-untrusted",
        )
    logger.warning(
        "%s: Python code of %s is executed (%s and what they import), with all your rights.",
        FLAG,
        repository,
        listed,
    )
    return True
