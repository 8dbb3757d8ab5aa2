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
from s3prl_mtl.registry.task_names import BUILT_IN_TASKS

__all__ = [
    "BUILT_IN_TASKS",
    "DEFAULT_PATH",
    "Config",
    "RunConfig",
    "TaskConfig",
    "build_config",
    "parse_tasks",
    "resolve",
    "resolve_plain",
]
