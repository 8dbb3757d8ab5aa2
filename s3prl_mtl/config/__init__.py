"""The settings of a run: schema, defaults, and the merging of config files and overrides."""

from s3prl_mtl.config.build import (
    DEFAULT_PATH,
    TASK_SETTINGS,
    Config,
    build_config,
    parse_tasks,
    resolve,
    resolve_plain,
)
from s3prl_mtl.config.schema import RunConfig, TaskConfig

__all__ = [
    "DEFAULT_PATH",
    "TASK_SETTINGS",
    "Config",
    "RunConfig",
    "TaskConfig",
    "build_config",
    "parse_tasks",
    "resolve",
    "resolve_plain",
]
