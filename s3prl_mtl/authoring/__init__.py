"""For the authors of tasks: a package to start from, and the test of the contract."""

from s3prl_mtl.authoring.conformance import check_task
from s3prl_mtl.authoring.contract import CONTRACT, Clause, Finding
from s3prl_mtl.authoring.new_task import new_task

__all__ = ["CONTRACT", "Clause", "Finding", "check_task", "new_task"]
