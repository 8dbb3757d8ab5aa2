"""The summary of a training in the log, found without its wording."""

from __future__ import annotations

import pytest

from s3prl_mtl.training import runner


def summaries(caplog: pytest.LogCaptureFixture) -> list[list[str]]:
    """The lines of every summary: the only records of the runner that have several."""
    texts = [record.getMessage() for record in caplog.records if record.name == runner.__name__]
    return [text.splitlines() for text in texts if "\n" in text]
