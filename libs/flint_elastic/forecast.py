"""What is expected to arrive: rates for the coming stretches of time, and how far they are to be trusted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

__all__ = ["BUCKET_S", "NO_FORECAST", "Forecast"]

BUCKET_S: Final = 300.0
_MOST_BUCKETS: Final = 8_064


@dataclass(frozen=True, slots=True)
class Forecast:
    """Mean arrivals per second in consecutive buckets. Only its *changes* move a decision: see `rise`."""

    starts_at: float = 0.0
    """Epoch seconds at which the first bucket begins."""
    rates: tuple[float, ...] = ()
    trust: float = 0.0
    """0 to 1: how much better than "as it is now" the forecasts of this pool have been (`Tracker.trust`)."""
    source: str = "none"
    """How it was made: "none", "seasonal naive", "mstl", or a mix with its shares."""
    bucket_s: float = BUCKET_S
    includes_known: bool = False
    """Whether the history it was learned from held arrivals that are also announced in `Observation.coming`. The
    greater of the two is planned for then, else their sum."""

    def at(self, moment: float) -> float | None:
        """The rate forecast for a moment, on straight lines between the middles of buckets; None outside."""
        if not self.rates:
            return None
        position = (moment - self.starts_at) / self.bucket_s
        if not 0 <= position < len(self.rates):
            return None
        left = min(max(position - 0.5, 0.0), len(self.rates) - 1.0)
        index = int(left)
        after = self.rates[min(index + 1, len(self.rates) - 1)]
        return self.rates[index] + (after - self.rates[index]) * (left - index)

    def rise(self, now: float, until: float) -> float:
        """Arrivals per second, trust included, by which the rate will at most exceed today's until a moment; never
        below 0.

        Only the change counts: a day that is twice as busy as its forecast keeps its own level, and moves with the
        pattern.
        """
        here = self.at(now)
        if here is None or self.trust <= 0:
            return 0.0
        first = int((now - self.starts_at) // self.bucket_s) + 1
        last = int((until - self.starts_at) // self.bucket_s)
        moments = [self.starts_at + index * self.bucket_s for index in range(first, last + 1)]
        middles = [moment + self.bucket_s / 2 for moment in moments if moment + self.bucket_s / 2 < until]
        ahead = [rate for rate in map(self.at, (*moments, *middles, until)) if rate is not None]
        return self.trust * max(0.0, max(ahead, default=here) - here)

    def to_json(self) -> dict[str, Any]:
        """All members; rates rounded to a millionth."""
        return {
            "starts_at": self.starts_at,
            "rates": [round(rate, 6) for rate in self.rates],
            "trust": round(self.trust, 4),
            "source": self.source,
            "bucket_s": self.bucket_s,
            "includes_known": self.includes_known,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError when the document is no forecast; at most 8,064 buckets (four weeks
        of 5 min)."""
        rates = tuple(max(0.0, float(rate)) for rate in document["rates"])
        if len(rates) > _MOST_BUCKETS:
            raise ValueError(f"a forecast of {len(rates)} buckets; at most {_MOST_BUCKETS}")
        return cls(
            starts_at=float(document["starts_at"]),
            rates=rates,
            trust=min(1.0, max(0.0, float(document["trust"]))),
            source=str(document["source"])[:200],
            bucket_s=float(document["bucket_s"]),
            includes_known=bool(document["includes_known"]),
        )


NO_FORECAST: Final = Forecast()
