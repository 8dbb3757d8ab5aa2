"""The settings of a run: schema, defaults, and the merging of config files and overrides."""

from s3prl_mtl.config.build import (
    DEFAULT_PATH,
    build_config,
    parse_tasks,
    resolve,
    resolve_plain,
)
from s3prl_mtl.config.schema import RunConfig, TaskConfig
from s3prl_mtl.config.task_blocks import Config

__all__ = [
    "DEFAULT_PATH",
    "Config",
    "RunConfig",
    "TaskConfig",
    "build_config",
    "parse_tasks",
    "resolve",
    "resolve_plain",
]
