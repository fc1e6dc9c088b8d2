"""What is seen of a pool at one moment: its queue, its load, its workers, and what is known to come. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Backlog", "Coming", "Observation", "WorkerState", "WorkerView"]


class WorkerState(StrEnum):
    """Where a worker is in its life, as far as capacity is concerned. A worker that ended or was lost is left out."""

    STARTING = "starting"
    """Asked for, not registered yet."""
    READY = "ready"
    """Takes legs."""
    DRAINING = "draining"
    """Takes no more legs, because a decision said so; a later one may take it back."""
    LEAVING = "leaving"
    """Takes no more legs for another reason (a deploy, quarantine, a signal); it is never taken back nor ended here."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker. Times are epoch seconds, on the clock of `Observation.at`."""

    id: str
    """The incarnation; for one that starts, whatever the provisioner calls it."""
    state: WorkerState
    slots: int
    legs: int = 0
    """Legs that it holds or that are on their way to it: the greater of its heartbeat and the schedulers' cards."""
    idle_since: float | None = None
    """Since when it has held no leg; None while it holds one."""
    started_at: float = 0.0
    """When it was asked for (starting) or registered."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Legs of one level that could begin now if there were a slot: not those that wait for a timer, permit or
    window."""

    level: int
    waiting: int
    oldest_wait_s: float = 0.0
    leg_s: float | None = None
    """Mean time that these legs will hold a slot, as learned; None: as `Observation.leg_s`."""


@dataclass(frozen=True, slots=True)
class Coming:
    """Legs that a schedule or a timer will make ready at a known time."""

    at: float
    """Epoch seconds."""
    legs: int
    leg_s: float | None = None
    """Mean time that they will hold a slot; None: as `Observation.leg_s`."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A pool at one moment. All of it is optional but `at`: what is not known is left at its default."""

    at: float
    """Epoch seconds. Moments of one pool never go back; one that does is taken for the last moment seen."""
    backlog: tuple[Backlog, ...] = ()
    """At most one entry a level."""
    arrivals_per_s: float = 0.0
    """Legs that became ready per second since the observation before, placed at once or not."""
    leg_s: float = 1.0
    """Mean time that a leg holds its slot, learned over the pool's present mix (`DurationBook.mean`): cut at the 99th
    percentile, because what is older counts as `overstaying`."""
    leg_spread: float = 1.0
    """Coefficient of variation of that time: 0 all alike, 1 exponential."""
    overstaying: int = 0
    """Running legs that are older than the 99th percentile of their kind: nobody knows when their slots come back."""
    workers: tuple[WorkerView, ...] = ()
    coming: tuple[Coming, ...] = ()
    """In order of time. Only what lies within the policy's idle time plus the start-up time is looked at."""
    startup_s: float | None = None
    """Start-up time as learned (95th percentile); None: as in the policy."""
    start_failures: int = 0
    """Starts of workers that failed one after the other, the last one included; 0 after a success."""
    wait_p95_s: float | None = None
    """95th percentile of the waits of legs that began since the observation before; None: none began."""

    @property
    def waiting(self) -> int:
        """Legs that wait for a slot, of all levels."""
        return sum(entry.waiting for entry in self.backlog)

    @property
    def running(self) -> int:
        """Legs that hold a slot, on workers of any state."""
        return sum(worker.legs for worker in self.workers)

    def to_json(self) -> dict[str, Any]:
        """The observation for a ledger, workers as counts by state: their ids are in the decision where it names
        them."""
        states: dict[str, int] = {}
        for worker in self.workers:
            states[str(worker.state)] = states.get(str(worker.state), 0) + 1
        return {
            "at": self.at,
            "backlog": [asdict(entry) for entry in self.backlog],
            "arrivals_per_s": round(self.arrivals_per_s, 6),
            "leg_s": round(self.leg_s, 6),
            "leg_spread": round(self.leg_spread, 4),
            "running": self.running,
            "overstaying": self.overstaying,
            "workers": states,
            "slots": sum(worker.slots for worker in self.workers),
            "coming_legs": sum(entry.legs for entry in self.coming),
            "startup_s": self.startup_s,
            "start_failures": self.start_failures,
            "wait_p95_s": self.wait_p95_s,
        }
