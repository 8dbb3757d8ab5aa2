"""How a check of a line of the contract ends."""

from __future__ import annotations

from collections.abc import Callable

from s3prl_mtl.authoring.harness import Subject

Check = Callable[[Subject], str]
"""Says what was seen of a line that holds; raises one of the following otherwise."""


class Broken(Exception):
    """The line does not hold, and why."""


class NotApplicable(Exception):
    """The line does not concern this task, or cannot be checked, and why."""
