"""What is expected to arrive: rates for the coming stretches of time, and how far they are to be trusted. Pure."""

from __future__ import annotations

import math
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
        """The mean rate of the bucket that a moment lies in; None outside."""
        index = math.floor((moment - self.starts_at) / self.bucket_s)
        return self.rates[index] if 0 <= index < len(self.rates) else None

    def rise(self, now: float, until: float) -> float:
        """Arrivals per second, trust included, by which the rate will exceed today's at most until a moment; never < 0.

        Only the change counts: a day that is twice as busy as its forecast keeps its own level, and moves with the
        pattern.
        """
        here = self.at(now)
        if here is None or self.trust <= 0:
            return 0.0
        first = math.floor((now - self.starts_at) / self.bucket_s)
        last = math.floor((until - self.starts_at) / self.bucket_s)
        return self.trust * (max(self.rates[first : last + 1]) - here)

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
