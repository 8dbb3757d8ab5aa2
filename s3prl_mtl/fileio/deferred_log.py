"""What is to be said of a config, kept until the log of its run is open."""

from __future__ import annotations

import logging
from types import TracebackType

logger = logging.getLogger(__name__)


class Remarks:
    """What is noticed while a config is built: each once, however often it is built.

    The log of a run lies in its folder, which is known and opened only after the config is built.
    As a context manager it logs at the end what is still kept, so that nothing is lost where what
    is inside fails.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, str]] = []
        self._known: set[tuple[int, str]] = set()

    def add(self, text: str, level: int = logging.WARNING) -> None:
        """Keep a remark, unless it was made before.

        Args:
            text: of it, as it is logged.
            level: one of those of `logging`.
        """
        remark = (level, text)
        if remark not in self._known:
            self._known.add(remark)
            self._kept.append(remark)

    def say(self) -> None:
        """Log what is kept, in the order in which it was noticed; it is then no longer kept."""
        kept, self._kept = self._kept, []
        for level, text in kept:
            logger.log(level, "%s", text)

    def __enter__(self) -> Remarks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.say()
