"""What was decided, why, and what the next decision has to know. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flint_elastic.rates import RateEstimate

__all__ = ["Decision", "PoolState"]


@dataclass(frozen=True, slots=True)
class PoolState:
    """What one decision hands to the next. A new leader begins with an empty one and is slow to drain at first."""

    rate: RateEstimate = field(default_factory=RateEstimate)
    """Arrivals, smoothed."""
    since: float | None = None
    """When the first observation was made."""
    at: float | None = None
    """When the last one was made."""
    peaks: tuple[tuple[float, int], ...] = ()
    """Greatest number of workers wanted in each stretch of time, oldest first, for as long as an idle worker is
    kept."""
    last_up_at: float | None = None
    last_down_at: float | None = None
    drained_from: int = 0
    """Workers that were there when the last ones were drained."""
    regrets: int = 0
    """Drains lately that a start followed soon: each doubles the time that a surplus must have lasted."""
    regretted_at: float = 0.0
    stuck: int = 0
    """Waiting legs that did not begin although slots were free: no worker that could be started would help them."""
    free_since: float | None = None
    """Since when slots have been free while legs waited."""
    free_least: int = 0
    """Fewest legs that waited since then."""
    stuck_at: float = 0.0
    """When `stuck` was last seen to be so."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one pool. In shadow mode it says what would have been done.

    To carry it out, in this order: take back `revive`, start `start` workers, drain `drain`, end `end`. A worker in
    `end` was seen draining with no leg, so no leg can have come to it since; ending it is still a request to stop,
    never a kill.
    """

    at: float
    wanted: int
    """Workers that the pool should have, within its bounds."""
    wanted_slots: float
    """Slots that the load wants, before bounds and rounding."""
    start: int = 0
    revive: tuple[str, ...] = ()
    """Draining workers that take legs again."""
    drain: tuple[str, ...] = ()
    """Workers that take no more legs from now on."""
    end: tuple[str, ...] = ()
    """Drained workers without a leg, to be ended."""
    why: str = ""
    """In words, for people."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """What it was made of: JSON values."""
    shadow: bool = False
    state: PoolState = field(default_factory=PoolState)
    """For the next decision."""

    @property
    def action(self) -> str:
        """One word for metrics and lists: "up", "down" or "none"."""
        if self.start or self.revive:
            return "up"
        return "down" if self.drain or self.end else "none"
