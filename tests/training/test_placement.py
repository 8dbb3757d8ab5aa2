"""Parse `--placement`."""

from __future__ import annotations

import pytest

from s3prl_mtl.distributed.shares import data_parallel
from s3prl_mtl.errors import UserError
from s3prl_mtl.training.placement import parse_placement
from tests.mistakes import user_error


def test_each_rank_has_the_tasks_that_it_names():
    placement = parse_placement("0:asr;1:pr,ks", ["pr", "asr", "ks"], 2)
    assert placement.shares == {"pr": {1: (0, 1)}, "asr": {0: (0, 1)}, "ks": {1: (0, 1)}}


def test_a_task_of_several_ranks_is_divided_evenly():
    placement = parse_placement("2: asr ; 0: asr, ks; 4:pr;1:asr;3:pr", ["asr", "pr", "ks"], 5)
    assert placement.shares == {
        "asr": {0: (0, 1), 1: (2, 3), 2: (4,)},
        "pr": {3: (0, 1, 2), 4: (3, 4)},
        "ks": {0: (0, 1, 2, 3, 4)},
    }


def test_every_task_on_every_rank_is_data_parallel():
    written = parse_placement("0:asr,ks;1:asr,ks", ["asr", "ks"], 2)
    assert written == data_parallel(["asr", "ks"], 2)


def test_an_alias_is_the_task_that_it_stands_for():
    assert parse_placement("0:asv;1:ks", ["sv", "ks"], 2).shares["sv"] == {0: (0, 1)}


def test_names_of_tasks_may_have_colons():
    tasks = ["lab:tones", "ks"]
    assert parse_placement("0:ks;1:lab:tones", tasks, 2).ranks_of("lab:tones") == (1,)


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("0:asr;1:pr,ks;2:sv", "invalid-value", ["rank 2", "ranks 0 to 1"]),
        ("0:asr,sv;1:pr,kss", "unknown-name", ["'kss'", "'ks'"]),
        ("0:asr,sv;1:pr,sid", "unknown-name", ["'sid'"]),
        ("0:asr;1:pr,ks", "invalid-value", ["sv"]),
        ("0:asr;1:pr", "invalid-value", ["ks and sv"]),
        ("0:asr,pr,ks,sv", "invalid-value", ["Rank 1"]),
        ("0:asr;1:pr,ks;0:sv", "invalid-value", ["Rank 0"]),
        ("0:asr,asr;1:pr,ks,sv", "invalid-value", ["Rank 0", "'asr'"]),
        ("0:asr,sv;1:pr,ks,asv,sv", "invalid-value", ["Rank 1", "'sv'"]),
        ("0:asr,pr,ks,sv;1", "invalid-value", ["'1'"]),
        *(
            (text, "invalid-value", [repr(text), "rank:task,task;rank:task"])
            for text in (
                "",
                "asr",
                "0:asr;1:",
                "0:asr,;1:pr,ks,sv",
                "0:asr;1:pr,ks,sv;",
                "-1:asr;1:pr,ks,sv",
                "asr:0;pr:1",
                "²:asr",
                "9999999999999999:asr",
            )
        ),
    ],
)
def test_an_invalid_placement_is_explained(text: str, code: str, names: list[str]):
    with user_error(code, where="--placement") as caught:
        parse_placement(text, ["asr", "pr", "ks", "sv"], 2)
    assert all(name in str(caught.value) for name in names)


def test_a_run_of_one_process_has_rank_0_only():
    with pytest.raises(UserError) as caught:
        parse_placement("1:asr", ["asr"], 1)
    assert caught.value.code == "invalid-value" and "rank 0" in str(caught.value)
