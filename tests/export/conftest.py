"""Restore the logging of the process, which the command line sets up."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


def _kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


keep_log_of_a_module = pytest.fixture(scope="module", autouse=True)(_kept)
keep_log_of_a_test = pytest.fixture(autouse=True)(_kept)
