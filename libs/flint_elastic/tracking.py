"""How far forecasts are to be trusted: the share of a forecast change that really comes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Self

from flint_elastic.forecast import BUCKET_S, Forecast

__all__ = ["LOOK_AHEAD", "Tracker"]

LOOK_AHEAD: Final = 2
"""Buckets over which changes are compared: what a decision looks ahead, roughly."""
_FADE: Final = 0.5 ** (1 / 288)
_DOUBT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Tracker:
    """The regression through zero of changes that came on changes that were forecast; it forgets half in a day.

    A decision plans for `rate now + trust * forecast change`, so the slope of this regression is the trust that errs
    least. A forecast that has nothing to do with what comes has slope 0, one that exaggerates twice has slope 0.5. Few
    changes forecast so far, compared with what chance alone moves, leave the trust near 0.
    """

    both: float = 0.0
    forecast: float = 0.0
    chance: float = 0.0
    """Variance that a rate over one bucket has by chance, decayed mean."""

    @property
    def trust(self) -> float:
        """0 to 1."""
        weight = self.forecast + _DOUBT * self.chance
        return min(1.0, max(0.0, self.both / weight)) if weight > 0 else 0.0

    def observe(self, forecast: Forecast, before: float, now: float, ended_at: float) -> Tracker:
        """With the rates of two finished buckets: the one that ended at `ended_at`, and that `LOOK_AHEAD` buckets
        before.

        `forecast` is the one that was in force; outside of what it covers nothing is learned.
        """
        middle = ended_at - BUCKET_S / 2
        to, since = forecast.at(middle), forecast.at(middle - LOOK_AHEAD * BUCKET_S)
        if to is None or since is None:
            return self
        expected = to - since
        return Tracker(
            both=_FADE * self.both + expected * (now - before),
            forecast=_FADE * self.forecast + expected * expected,
            chance=_FADE * self.chance + (1 - _FADE) * max(now, before) / BUCKET_S,
        )

    def weighed(self, forecast: Forecast) -> Forecast:
        """The forecast with today's trust."""
        return replace(forecast, trust=self.trust)

    def to_json(self) -> dict[str, Any]:
        """All members."""
        return {"both": self.both, "forecast": self.forecast, "chance": self.chance}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError when the document is no tracker."""
        return cls(float(document["both"]), float(document["forecast"]), float(document["chance"]))
