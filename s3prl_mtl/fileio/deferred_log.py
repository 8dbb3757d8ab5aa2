"""Buffer config warnings until the run log is open."""

from __future__ import annotations

import logging
from types import TracebackType

logger = logging.getLogger(__name__)


class DeferredLog:
    """Log records of building a config, buffered because the log is in the folder of the run.

    The folder is known only after the config is built. A config may be built several times: equal
    records are kept once. As a context manager it flushes at the end, also on an error.
    """

    def __init__(self) -> None:
        self._buffered: list[tuple[int, str]] = []
        self._seen: set[tuple[int, str]] = set()

    def add(self, text: str, level: int = logging.WARNING) -> None:
        """Buffer a record, unless an equal one was added before.

        Args:
            text: the message.
            level: one of `logging`.
        """
        record = (level, text)
        if record not in self._seen:
            self._seen.add(record)
            self._buffered.append(record)

    def flush(self) -> None:
        """Log the buffered records in their order, and empty the buffer."""
        buffered, self._buffered = self._buffered, []
        for level, text in buffered:
            logger.log(level, "%s", text)

    def __enter__(self) -> DeferredLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()
