"""For authors of tasks: start a package (`new_task`) and check a task's contract (`check_task`)."""

from s3prl_mtl.authoring.conformance import CONTRACT, check_task
from s3prl_mtl.authoring.contract import Clause, Finding
from s3prl_mtl.authoring.new_task import new_task

__all__ = ["CONTRACT", "Clause", "Finding", "check_task", "new_task"]
