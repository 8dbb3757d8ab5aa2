"""Reading of YAML files, the same way wherever one is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text


def read_yaml(path: str | Path, where: str) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, interpolations left as they are.

    Numbers such as `1e-4` are numbers here, unlike for plain PyYAML.

    Args:
        path: the file.
        where: what the file is to the user, such as `-c`, for errors.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or holds no mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"The file {path} does not exist.", where=where) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as cause:
        reason = " ".join(str(cause).split())
        raise UserError(f"{path} cannot be read as YAML: {reason}.", where=where) from cause
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping at its top level.", where=where)
    return {str(key): value for key, value in content.items()}


def write_yaml(content: Mapping[str, Any], path: Path) -> None:
    """Write a mapping, its keys in their order."""
    # Without going through JSON, parts that occur twice would become YAML's references.
    plain = json.loads(json.dumps(content))
    replace_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
