"""The lists of tasks after `-d`."""

from __future__ import annotations

import pytest

from s3prl_mtl.registry.task_names import BUILT_IN_TASKS, split_specs
from tests.mistakes import user_error


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("ks,asr,ks", ["ks", "asr"]),
        ("ks,asr,-ks", ["asr"]),
        ("all,-ks, -sd", [f"s3prl-mtl:{t}" for t in BUILT_IN_TASKS if t not in ("ks", "sd")]),
        ("lid:ks,asr,-lid:ks", ["asr"]),
        ("asr,-asr,asr", ["asr"]),
    ],
)
def test_tasks_are_named_and_left_out(text: str, tasks: list[str]) -> None:
    assert split_specs(text) == tasks


@pytest.mark.parametrize("text", ["all,-kss", "-ks,all", "asr,-ks"])
def test_a_task_that_is_not_there_cannot_be_left_out(text: str) -> None:
    with user_error("unknown-name", where="^-d$"):
        split_specs(text)


@pytest.mark.parametrize("text", ["", ",", "ks,-ks"])
def test_no_task_at_all_is_refused(text: str) -> None:
    with user_error("missing-option", where="^-d$"):
        split_specs(text)
