"""What arrived, in stretches of five minutes, and the plain forecast from it: as at this time of day and week before.
Pure."""

from __future__ import annotations

import math
from typing import Any, Final, Self

from flint_elastic.forecast import BUCKET_S, Forecast

__all__ = ["DAY", "WEEK", "ArrivalHistory", "seasonal_naive"]

DAY: Final = 288
"""Buckets of a day."""
WEEK: Final = 7 * DAY
_KEPT: Final = 5 * WEEK
_FADE: Final = 0.7
_WEEK_SHARE: Final = 0.65
_WEEKS_SHARE: Final = 0.9


class ArrivalHistory:
    """Counts of arrivals in consecutive buckets of 300 s, whole multiples of 300 s since the epoch; at most five
    weeks.

    Only finished buckets count as history; the one that a moment lies in is still filling. Stretches in which nothing
    was counted are zeros when time moved on over them. Not thread-safe.
    """

    __slots__ = ("_counts", "_first")

    def __init__(self) -> None:
        self._first = 0
        self._counts: list[float] = []

    def add(self, at: float, arrivals: float) -> None:
        """With arrivals at a moment, 0 too: that moves time on. Moments older than what is kept are ignored."""
        bucket = math.floor(at / BUCKET_S)
        if not self._counts:
            self._first = bucket
        if bucket < self._first:
            return
        missing = bucket - self._first - len(self._counts) + 1
        if missing > _KEPT:
            self._first, self._counts, missing = bucket, [], 1
        self._counts.extend([0.0] * max(0, missing))
        self._counts[bucket - self._first] += max(0.0, arrivals)
        surplus = len(self._counts) - _KEPT - 1
        if surplus > 0:
            del self._counts[:surplus]
            self._first += surplus

    def __len__(self) -> int:
        return max(0, len(self._counts) - 1)

    @property
    def starts_at(self) -> float:
        """Epoch seconds of the first bucket."""
        return self._first * BUCKET_S

    @property
    def ends_at(self) -> float:
        """Epoch seconds at which the last finished bucket ended."""
        return (self._first + len(self)) * BUCKET_S

    def rates(self) -> list[float]:
        """Arrivals per second of the finished buckets, oldest first."""
        return [count / BUCKET_S for count in self._counts[:-1]]

    def to_json(self) -> dict[str, Any]:
        """The counts, the filling bucket included."""
        return {"first": self._first, "counts": [round(count, 3) for count in self._counts]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError when the document is no history."""
        history = cls()
        history._first = int(document["first"])
        history._counts = [max(0.0, float(count)) for count in document["counts"]][: _KEPT + 1]
        return history


def seasonal_naive(rates: list[float], ends_at: float, buckets: int = DAY) -> Forecast:
    """The rates that will follow `rates` (of consecutive buckets, the last ended at `ends_at`), without trust.

    Each is a mean of the same time on earlier days and of the same time in earlier weeks, newer ones counting more,
    blurred over the neighbouring buckets. With less than a day of history there is nothing to go by: no rates.
    """
    have = len(rates)
    if have < DAY:
        return Forecast(starts_at=ends_at, source="none")

    def before(index: int, season: int) -> float | None:
        total = weights = 0.0
        weight = 1.0
        while (index := index - season) >= 0:
            if index < have:
                total, weights = total + weight * rates[index], weights + weight
                weight *= _FADE
        return total / weights if weights else None

    week_share = _WEEKS_SHARE if have >= 2 * WEEK else _WEEK_SHARE

    def plain(index: int) -> float:
        daily, weekly = before(index, DAY), before(index, WEEK)
        if weekly is None:
            return daily or 0.0
        return weekly if daily is None else week_share * weekly + (1 - week_share) * daily

    rates_ahead = tuple(plain(index) for index in range(have, have + buckets))
    return Forecast(starts_at=ends_at, rates=rates_ahead, source="seasonal naive")
