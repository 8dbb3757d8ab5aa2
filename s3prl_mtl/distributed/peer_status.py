"""The heartbeat of a rank, and its status as another rank sees it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Literal

PeerState = Literal["absent", "failed", "left", "silent", "stalled"]
"""State of a rank that others wait for: no heartbeat yet; reported an error; closed its watch; no
heartbeats any more (killed, frozen or disconnected); working or hanging."""


@dataclass(frozen=True)
class Heartbeat:
    """Message of a rank to the others, as JSON under one key of the store."""

    counter: int
    """Grows with every heartbeat. Clocks of machines differ: only its change shows life."""
    step: int
    what: str
    since: float
    """Seconds that `what` has lasted, by the clock of the sender."""
    waiting: bool
    host: str
    pid: int
    failed: str | None = None
    """The error for which this rank is about to end."""
    origin: bool = False
    """The error is its own, not the consequence of another rank's."""
    left: bool = False
    """It closed its watch: it ends, and was not killed."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Heartbeat:
        return cls(**json.loads(text))


@dataclass
class PeerStatus:
    """Status of another rank.

    Args:
        rank: of the other one.
        heartbeat: its last heartbeat; None before the first.
        changed: when its counter was first seen as it is now, by this process's monotonic clock.
    """

    rank: int
    heartbeat: Heartbeat | None
    changed: float

    @property
    def counter(self) -> int | None:
        return None if self.heartbeat is None else self.heartbeat.counter

    @property
    def has_failed(self) -> bool:
        return self.heartbeat is not None and self.heartbeat.failed is not None

    @property
    def is_origin(self) -> bool:
        return self.heartbeat is not None and self.heartbeat.origin

    @property
    def is_busy(self) -> bool:
        """Whether it works or hangs while others wait for it."""
        return self.heartbeat is not None and not self.heartbeat.waiting and not self.has_failed

    @property
    def silent_seconds(self) -> float:
        """Seconds without a heartbeat, at least."""
        return time.monotonic() - self.changed

    @property
    def name(self) -> str:
        where = (
            ""
            if self.heartbeat is None
            else f" (host {self.heartbeat.host}, process {self.heartbeat.pid})"
        )
        return f"rank {self.rank}{where}"

    def state(self, is_silent: bool) -> PeerState:
        """The reason why others wait for it.

        Args:
            is_silent: it has missed heartbeats.
        """
        if self.heartbeat is None:
            return "absent"
        if self.has_failed:
            return "failed"
        if is_silent:
            return "left" if self.heartbeat.left else "silent"
        return "stalled"

    def describe(self, is_silent: bool) -> str:
        """The same as the predicate of a sentence; arguments as for `state`."""
        if self.heartbeat is None:
            return "has never sent a heartbeat"
        step, what = self.heartbeat.step, self.heartbeat.what
        texts: dict[PeerState, str] = {
            "failed": f"failed at step {step}: {(self.heartbeat.failed or '').rstrip('.')}",
            "left": f"ended at step {step}",
            "silent": "was killed, is frozen or is disconnected: no heartbeat for at least "
            f"{format_seconds(self.silent_seconds)}, the last one at step {step} while {what}",
            "stalled": f"is stalled: at step {step} it has been {what} for "
            f"{format_seconds(self.heartbeat.since)}",
        }
        return texts[self.state(is_silent)]


@dataclass(frozen=True)
class Fault:
    """The cause of a failed collective operation.

    Args:
        text: a sentence for each rank at fault, or about the failure itself if there is none.
        ranks: state of each rank at fault.
    """

    text: str
    ranks: dict[int, PeerState]


def format_seconds(seconds: float) -> str:
    """A duration with its unit; below ten seconds with one decimal."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
