"""Files of learning rates, one for each task."""

from __future__ import annotations

import math
from pathlib import Path

from s3prl_mtl.errors import UserError
from s3prl_mtl.fileio.yaml_files import read_yaml


def read_learning_rates(path: Path) -> dict[str, float]:
    """The learning rate of each task in a YAML file, `{ks: 1.0e-3, ...}`.

    Raises:
        UserError: it is missing, or holds something else.
    """
    rates = {}
    for task, value in read_yaml(path, "--learning-rates").items():
        try:
            rates[str(task)] = float(value)
        except (TypeError, ValueError):
            rates[str(task)] = math.nan
        if not 0 < rates[str(task)] < math.inf:
            raise UserError(
                f"{value!r} is not a learning rate.",
                where=f"{task} in {path}",
                fix="For example ks: 1.0e-3.",
                code="invalid-value",
            )
    return rates
