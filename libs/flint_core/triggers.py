"""Starts by events: which events start a run of a workflow whose schedule is `on`. Pure.

    one, any ── each event that a filter lets pass ──▶ a run
    all ── events are put together, oldest first, until each filter has one and the correlations agree ──▶ a run

Unlike the events of a `listen`, those of a schedule are for many runs: for `all` several sets may be open at once (one
for each order, say), and an event goes to the oldest set that has a place for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flint_core.expressions import ExpressionFault
from flint_core.filters import PARTS, FilterPlan
from flint_core.patterns import equal

__all__ = ["Choice", "Trigger"]


class Choice(NamedTuple):
    """What becomes of events, as indexes into those that were given.

    `runs`: one tuple of events for each run to start, in the order of arrival. `dropped`: events that no filter lets
    pass. The others wait for what they lack.
    """

    runs: list[tuple[int, ...]]
    dropped: list[int]


class _Set:
    """A set of events that is not complete yet."""

    __slots__ = ("known", "open", "taken")

    def __init__(self, count: int) -> None:
        self.open = list(range(count))
        self.taken: list[int] = []
        self.known: dict[str, Any] = {}


_ANY: Final[dict[str, Any]] = {"with": {}, "correlate": {}}


class Trigger:
    """A compiled `on`: an event consumption strategy without `until`, as the compiler let it pass. Immutable."""

    def __init__(self, strategy: dict[str, Any]) -> None:
        (self._mode,) = strategy.keys() & {"one", "any", "all"}
        content = strategy[self._mode]
        documents = [content] if self._mode == "one" else content
        self._filters = [FilterPlan(_wrapped(document), frozenset()) for document in documents]
        self._expect = [
            {name: part["expect"] for name, part in document.get("correlate", {}).items() if "expect" in part}
            for document in documents
        ]

    def request(self) -> dict[str, Any]:
        """What whoever delivers events may go by, as for an await of events."""
        pairs = zip(self._filters, self._expect, strict=True)
        return {"filters": [found.request(expect) for found, expect in pairs] or [_ANY]}

    def choose(self, events: Sequence[dict[str, Any]], now_ms: int) -> Choice:
        """Which runs these events start, in the order of arrival."""
        runs: list[tuple[int, ...]] = []
        dropped: list[int] = []
        waiting: list[_Set] = []
        for index, event in enumerate(events):
            fits = self._fits(event, now_ms)
            if not fits and (self._filters or self._mode == "all"):
                dropped.append(index)
            elif self._mode != "all":
                runs.append((index,))
            else:
                for place in (*waiting, _Set(len(self._filters))):
                    if _join(place, index, fits):
                        break
                if not place.taken:
                    dropped.append(index)
                elif not place.open:
                    runs.append(tuple(place.taken))
                    if place in waiting:
                        waiting.remove(place)
                elif len(place.taken) == 1 and place not in waiting:
                    waiting.append(place)
        return Choice(runs, dropped)

    def _fits(self, event: dict[str, Any], now_ms: int) -> dict[int, dict[str, Any]]:
        """The filters that let the event pass, each with what it says of correlations."""
        fits: dict[int, dict[str, Any]] = {}
        for number, found in enumerate(self._filters):
            known = self._passes(number, found, event, now_ms)
            if known is not None:
                fits[number] = known
        return fits

    def _passes(self, number: int, found: FilterPlan, event: dict[str, Any], now_ms: int) -> dict[str, Any] | None:
        if not found.fits(event):
            return None
        known: dict[str, Any] = {}
        for part in range(1, PARTS):
            expressions = found.data if part == 1 else found.event
            if expressions is None:
                continue
            try:
                results = expressions.binding.run(event.get("data") if part == 1 else event, {}, now_ms, ())
            except ExpressionFault:
                return None
            if not found.verdict(part, event, results):
                return None
            if part == 1:
                continue
            for name in found.correlate:
                value = results[f"={name}"]
                if value is None and name not in self._expect[number]:
                    return None
                if name in self._expect[number] and not equal(value, self._expect[number][name]):
                    return None
                if name not in self._expect[number]:
                    known[name] = value
        return known


def _join(place: _Set, index: int, fits: dict[int, dict[str, Any]]) -> bool:
    """Puts the event into the set when it has an open place for it and the correlations agree."""
    for number, known in fits.items():
        if number in place.open and all(
            equal(place.known[name], value) for name, value in known.items() if name in place.known
        ):
            place.open.remove(number)
            place.taken.append(index)
            place.known.update(known)
            return True
    return False


def _wrapped(document: dict[str, Any]) -> dict[str, Any]:
    """The filter with its `from` written as expressions, with or without `${ }`."""
    correlate = {
        name: {**part, "from": part["from"] if "${" in part["from"] else f"${{ {part['from']} }}"}
        for name, part in document.get("correlate", {}).items()
    }
    return {**document, "correlate": correlate}
