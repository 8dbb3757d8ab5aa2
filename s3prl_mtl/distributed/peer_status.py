"""What a rank knows of another one: its last beat, and for how long it has been silent."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Heartbeat:
    """What one rank tells the others, as JSON under one key of the store."""

    counter: int
    """Grows with every beat. Clocks of machines differ: only its change shows life."""
    step: int
    what: str
    since: float
    """How long `what` has lasted, in seconds, by the clock of the beating rank."""
    waiting: bool
    host: str
    pid: int
    failed: str | None = None
    """Why this rank is about to end; None while all is well."""
    origin: bool = False
    """Whether it fails for a reason of its own, not because another one did."""
    left: bool = False
    """Whether it closed its watch: it ends, and was not killed."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Heartbeat:
        return cls(**json.loads(text))


@dataclass
class PeerStatus:
    """What is known of another rank, and the sentences that say so.

    Args:
        rank: of the other one.
        beat: its last; None if there never was one.
        changed: when its counter was first seen as it is now, by this process's monotonic clock.
    """

    rank: int
    beat: Heartbeat | None
    changed: float

    @property
    def counter(self) -> int | None:
        return None if self.beat is None else self.beat.counter

    @property
    def has_failed(self) -> bool:
        return self.beat is not None and self.beat.failed is not None

    @property
    def is_origin(self) -> bool:
        return self.beat is not None and self.beat.origin

    @property
    def is_busy(self) -> bool:
        """Whether it works or hangs, where the others wait for it."""
        return self.beat is not None and not self.beat.waiting and not self.has_failed

    @property
    def silent_seconds(self) -> float:
        """It has been silent for at least so long."""
        return time.monotonic() - self.changed

    def culprit(self, is_silent: bool) -> str:
        """One sentence: what this rank did to make the others fail."""
        if self.beat is None:
            return f"Rank {self._number} has never been heard of."
        if self.has_failed:
            return f"Rank {self._number} {self._failure}."
        if not is_silent:
            return f"Rank {self._number} is stalled: {self._business}."
        if self.beat.left:
            return f"Rank {self._number} has ended at step {self.beat.step}."
        return f"Rank {self._number} was killed, is frozen or cut off: {self._silence}."

    def waited_for(self, wait: str, is_silent: bool) -> str:
        """One sentence: what this rank does while another waits for it.

        Args:
            wait: how long that has lasted, with its unit.
            is_silent: whether it has missed its beats.
        """
        if self.has_failed:
            state = f"it {self._failure}"
        else:
            state = self._silence if is_silent or self.beat is None else self._business
        return f"Waiting for rank {self._number} for {wait}: {state}."

    @property
    def _number(self) -> str:
        where = "" if self.beat is None else f" (host {self.beat.host}, process {self.beat.pid})"
        return f"{self.rank}{where}"

    @property
    def _failure(self) -> str:
        assert self.beat is not None and self.beat.failed is not None
        return f"failed at step {self.beat.step}: {self.beat.failed.rstrip('.')}"

    @property
    def _business(self) -> str:
        assert self.beat is not None
        return (
            f"at step {self.beat.step} it has been {self.beat.what} for {spoken(self.beat.since)}"
        )

    @property
    def _silence(self) -> str:
        if self.beat is None:
            return "it has never been heard of"
        return (
            f"it has not been heard of for at least {spoken(self.silent_seconds)}; "
            f"at step {self.beat.step} it was {self.beat.what}"
        )


def spoken(seconds: float) -> str:
    """A duration with its unit, as precise as somebody who waits wants it."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
