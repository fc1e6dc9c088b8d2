"""How a run wants to queue: where it may be executed, by when it should begin or end, what it shares. Pure.

`QueueHints` is stored with a run that says any of it (`run.hints`, as JSON); a run that says nothing has none. All
moments are Unix epoch milliseconds; 0 means that there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson

from flint_core.windows import Window

__all__ = [
    "DEFAULT_POOL",
    "LEVELS",
    "URGENT",
    "ConcurrencyKey",
    "Placement",
    "QueueHints",
    "RateKey",
    "needs_permits",
    "slots_beyond",
]

DEFAULT_POOL: Final = "default"
"""The pool of runs that name none."""

LEVELS: Final = 10
"""Number of levels: 0 is the most urgent, 9 the least."""

URGENT: Final = 0
"""The level that overtakes everything; nothing else ages into it."""

_ONE_BEYOND: Final = 50


def slots_beyond(slots: int) -> int:
    """How many urgent legs a worker runs beyond its slots, so that they need not wait until a slot is free.

    One for each 50 slots: none where slots are few, because each of those may stand for much of the machine.
    """
    return slots // _ONE_BEYOND


@dataclass(frozen=True, slots=True)
class ConcurrencyKey:
    """At most `limit` runs with this key are executed at a time. `overflow`: what becomes of a run beyond it.

    `named`: the namespace's limit of this name counts instead, as it stands when a run asks.
    """

    key: str
    limit: int
    overflow: str = "queue"
    named: str = ""


@dataclass(frozen=True, slots=True)
class RateKey:
    """Runs with this key begin at the pace of `count` in `period_ms`; after a pause, `burst` of them at once.

    So at most `burst - 1` more than the pace allows begin in any stretch of time. `named`: as of `ConcurrencyKey`.
    """

    key: str
    count: int
    period_ms: int
    burst: int = 1
    named: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a leg is executed. Region "" is any; level None is the run's own; `named`: as the definition names it."""

    pool: str = DEFAULT_POOL
    region: str = ""
    level: int | None = None
    named: str = ""

    def to_json(self) -> bytes:
        """As it is stored and sent: the members that differ from the defaults."""
        return orjson.dumps({name: value for name, value in _members(self) if value != _PLACED[name]})

    @classmethod
    def from_json(cls, data: bytes) -> Placement:
        """The reverse of `to_json`; members that this version does not know are left out. Raises ValueError."""
        return cls(**_known(data, _PLACED))


@dataclass(frozen=True, slots=True)
class QueueHints:
    """What a run asks of the queue.

    `deadline_ms`: when it should have ended; within a level the earliest goes first. `not_before_ms`: it is not begun
    earlier. `window`, `off_peak`: it waits for a window of its own, or the cluster's off-peak time, unless a slot is
    spare. `latest_start_ms`: from then on it waits for neither. `fairness_key`: runs with different keys take turns
    within their namespace. `sticky`: a worker that executed a run with this key lately is preferred.
    """

    pool: str = DEFAULT_POOL
    region: str = ""
    deadline_ms: int = 0
    not_before_ms: int = 0
    latest_start_ms: int = 0
    off_peak: bool = False
    window: Window | None = None
    fairness_key: str = ""
    concurrency: tuple[ConcurrencyKey, ...] = ()
    rates: tuple[RateKey, ...] = ()
    sticky: str = ""

    def to_json(self) -> bytes:
        """As it is stored: the members that differ from the defaults."""
        document: dict[str, Any] = {name: value for name, value in _members(self) if value != _DEFAULTS[name]}
        if self.window is not None:
            document["window"] = self.window.to_document()
        if self.concurrency:
            document["concurrency"] = [dict(_members(k)) for k in self.concurrency]
        if self.rates:
            document["rates"] = [dict(_members(k)) for k in self.rates]
        return orjson.dumps(document)

    @classmethod
    def from_json(cls, data: bytes) -> QueueHints:
        """The reverse of `to_json`; members that this version does not know are left out. Raises ValueError."""
        members = _known(data, _DEFAULTS)
        if "window" in members:
            members["window"] = Window.from_document(members["window"])
        if "concurrency" in members:
            members["concurrency"] = tuple(ConcurrencyKey(**k) for k in members["concurrency"])
        if "rates" in members:
            members["rates"] = tuple(RateKey(**k) for k in members["rates"])
        return cls(**members)


def needs_permits(hints: QueueHints | None) -> bool:
    """Whether a run with these hints asks for permits before its legs open."""
    return hints is not None and bool(hints.concurrency or hints.rates)


def _members(value: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(value, name)) for name in value.__slots__]


def _known(data: bytes, defaults: Mapping[str, Any]) -> dict[str, Any]:
    document = orjson.loads(data)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return {name: value for name, value in document.items() if name in defaults}


_DEFAULTS: Final = {field.name: field.default for field in fields(QueueHints)}
_PLACED: Final = {field.name: field.default for field in fields(Placement)}
