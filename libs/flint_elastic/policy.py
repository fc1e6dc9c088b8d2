"""What an operator asks of a pool: bounds, targets, costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Self

__all__ = ["LEVELS", "PolicyInvalid", "PoolPolicy"]

LEVELS: Final = 10
_MAXIMUM_WORKERS: Final = 100_000
_MAXIMUM_SLOTS: Final = 10_000
_MAXIMUM_S: Final = 7 * 86_400.0


class PolicyInvalid(ValueError):
    """A member of a policy is out of its range; the message names it and says the range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """How one pool grows and shrinks. Counts are workers unless the name says slots; times are seconds.

    Raises PolicyInvalid when a member is out of its range.
    """

    minimum: int = 0
    """Workers that are always there, replaced at once when lost. 0 lets the pool go down to nothing."""
    maximum: int = 10
    """Workers that may exist at once, those that start or drain included."""
    slots_per_worker: int = 8
    """Room of a worker that would be started now."""
    buffer_slots: int = 0
    """Free slots that are kept warm on top of what the load needs, also while there is no load."""
    standby_slots: int = 0
    """Free slots that are kept on top of the buffer for urgent work; the scheduler gives them to urgent levels only."""
    target_wait_s: float = 2.0
    """The promise of the pool: 95 of 100 legs begin within this time."""
    level_wait_s: tuple[tuple[int, float], ...] = ()
    """Other targets for single levels, such as ((9, 3600.0),): work that waits for spare capacity first."""
    idle_before_end_s: float = 300.0
    """How long a worker has no leg, and the pool no need of it, before it is ended."""
    cooldown_up_s: float = 0.0
    """Least time between two starts. A spike, a pool below its minimum and a missed target do not wait for it."""
    cooldown_down_s: float = 60.0
    """Least time between two drains, and between a start and a drain."""
    maximum_step_up: int = 1_000
    """Workers that one decision starts at most."""
    maximum_step_down: int = 100
    """Workers that one decision drains at most."""
    startup_s: float = 2.0
    """From asking for a worker to its first leg, until it has been learned (`Observation.startup_s`)."""
    consolidate: bool = True
    """Whether a worker that has legs may be asked to take no more of them, once the pool has had a worker too many for
    `idle_before_end_s`. Work that is spread evenly never leaves a worker idle otherwise."""
    cost_per_worker_hour: float = 1.0
    """What a worker costs, in any currency; only reports use it."""
    dedicated_to: str = ""
    """The one namespace that the pool works for; empty: all. Recorded with decisions; placement obeys it."""
    shadow: bool = False
    """Decisions are made, recorded and rated, and not carried out."""

    def __post_init__(self) -> None:
        _within("minimum", self.minimum, 0, _MAXIMUM_WORKERS)
        _within("maximum", self.maximum, max(1, self.minimum), _MAXIMUM_WORKERS)
        _within("slots_per_worker", self.slots_per_worker, 1, _MAXIMUM_SLOTS)
        _within("buffer_slots", self.buffer_slots, 0, _MAXIMUM_WORKERS)
        _within("standby_slots", self.standby_slots, 0, _MAXIMUM_WORKERS)
        _within("target_wait_s", self.target_wait_s, 0.01, _MAXIMUM_S)
        for level, wait_s in self.level_wait_s:
            _within("level_wait_s", level, 0, LEVELS - 1)
            _within("level_wait_s", wait_s, 0.01, _MAXIMUM_S)
        _within("idle_before_end_s", self.idle_before_end_s, 0, _MAXIMUM_S)
        _within("cooldown_up_s", self.cooldown_up_s, 0, _MAXIMUM_S)
        _within("cooldown_down_s", self.cooldown_down_s, 0, _MAXIMUM_S)
        _within("maximum_step_up", self.maximum_step_up, 1, _MAXIMUM_WORKERS)
        _within("maximum_step_down", self.maximum_step_down, 1, _MAXIMUM_WORKERS)
        _within("startup_s", self.startup_s, 0, 86_400)
        _within("cost_per_worker_hour", self.cost_per_worker_hour, 0, 1e9)

    def target_of(self, level: int) -> float:
        """Seconds within which 95 of 100 legs of a level are to begin."""
        return next((wait_s for own, wait_s in self.level_wait_s if own == level), self.target_wait_s)

    def to_json(self) -> dict[str, Any]:
        """All members; `level_wait_s` as a list of pairs."""
        document = {member.name: getattr(self, member.name) for member in fields(self)}
        return document | {"level_wait_s": [list(pair) for pair in self.level_wait_s]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """A policy of the members that are there; unknown ones are left out, so that a newer writer does no harm."""
        known = {member.name for member in fields(cls)}
        members = {name: value for name, value in document.items() if name in known}
        if "level_wait_s" in members:
            members["level_wait_s"] = tuple((int(level), float(wait_s)) for level, wait_s in members["level_wait_s"])
        return cls(**members)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise PolicyInvalid(f"{name} is {value:g}; it must be from {least:g} to {most:g}")
