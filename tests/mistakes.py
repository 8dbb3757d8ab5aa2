"""Assert a `UserError` by its code and place, never by its sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from s3prl_mtl.errors import CODES, UserError


@contextmanager
def user_error(
    code: str, where: str | None = None, fix: str | None = None
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a `UserError`.

    Args:
        code: of the error, one of `CODES`.
        where: a regular expression that its place has to contain: a file, key, line or flag.
        fix: a regular expression that its remedy has to contain. For names and values (the
            nearest key, the path to give), not for wording.
    """
    assert code in CODES, f"{code!r} is not a code"
    with pytest.raises(UserError) as caught:
        yield caught
    error = caught.value
    assert error.code == code, f"{error.code}: {error}"
    for pattern, found in ((where, error.where), (fix, error.fix)):
        if pattern is not None:
            assert found is not None and re.search(pattern, found), f"{pattern!r} not in {found!r}"
