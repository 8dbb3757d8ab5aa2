"""Read and write YAML files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.atomic import replace_text


def read_yaml(path: str | Path, where: str) -> dict[str, Any]:
    """Read a YAML file with a mapping at its top level; interpolations are not resolved.

    Numbers such as `1e-4` are floats, unlike with plain PyYAML.

    Args:
        path: the file.
        where: the flag or setting that names the file, for errors.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(os.path.expanduser(path)))
    except FileNotFoundError:
        raise UserError(
            f"The file {path} does not exist.", where=where, code="file-missing"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as cause:
        reason = " ".join(str(cause).split())
        raise UserError(
            f"{path} cannot be read as YAML: {reason}.", where=where, code="file-malformed"
        ) from cause
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a mapping at its top level.", where=where, code="file-malformed"
        )
    return {str(key): value for key, value in content.items()}


def write_yaml(content: Mapping[str, Any], path: Path) -> None:
    """Write a mapping with its keys in their order."""
    # Without the way through JSON, objects that occur twice would become YAML references.
    plain = json.loads(json.dumps(content))
    replace_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
