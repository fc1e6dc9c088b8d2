"""How fast work arrives: smooth while nothing happens, at once when something does. Pure.

Three averages of different memory (the last interval, a short one, a long one). The long one is believed until a
shorter one differs from it by more than chance explains; then the shorter is believed and the long one begins anew
from it. Chance is that of a Poisson process times the dispersion that was learned: traffic that always comes in gusts
is not a spike each time.

One interval alone cannot tell a batch from a new level of traffic. It is answered at once (the backlog says how much
there is, `latest` how fast it grows), and believed to last when the next interval is as surprising.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["RateEstimate"]

_SHORT_S: Final = 30.0
_LONG_S: Final = 300.0
_DISPERSION_S: Final = 1_800.0
_SURPRISE_NOW: Final = 4.5
_SURPRISE_SHORT: Final = 3.5
_MOST_DISPERSED: Final = 20.0
_NOTHING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """Arrivals per second, from observations at any distance in time."""

    long: float = 0.0
    short: float = 0.0
    seen_s: float = 0.0
    """Time that the averages cover, up to their memory."""
    dispersion: float = 1.0
    """Variance of counts over their mean: 1 for independent arrivals, more for gusts."""
    spiking: bool = False
    """Whether the last observation was more than chance."""

    latest: float = 0.0
    """The rate of the last interval alone."""

    @property
    def per_s(self) -> float:
        """The rate that lasts."""
        return self.long

    def observe(self, rate: float, over_s: float) -> RateEstimate:
        """With a mean rate over the last `over_s` seconds; no time, no news."""
        if over_s <= 0:
            return self
        rate = max(0.0, rate)
        seen_s = min(_LONG_S, self.seen_s + over_s)
        if self.seen_s <= 0:
            return RateEstimate(rate, rate, seen_s, latest=rate)
        count, expected = rate * over_s, self.long * over_s
        surprise = count - expected
        tolerated = _SURPRISE_NOW * math.sqrt(self.dispersion * max(expected, 1.0))
        measured = min(surprise**2 / max(expected, 1.0), _MOST_DISPERSED)
        dispersion = max(1.0, _mixed(self.dispersion, measured, over_s, _DISPERSION_S))
        if surprise > tolerated and self.spiking:
            return RateEstimate(rate, rate, over_s, dispersion, True, rate)
        believed = min(rate, (expected + tolerated) / over_s)
        memory_s = min(_SHORT_S, seen_s)
        short = _mixed(self.short, believed, over_s, memory_s)
        long = _mixed(self.long, believed, over_s, seen_s)
        chance = math.sqrt(dispersion * max(long * memory_s, 1.0)) / memory_s
        if abs(short - long) > _SURPRISE_SHORT * chance:
            long, seen_s = short, memory_s
        return RateEstimate(long if long > _NOTHING else 0.0, short, seen_s, dispersion, surprise > tolerated, rate)


def _mixed(before: float, value: float, over_s: float, memory_s: float) -> float:
    share = 1.0 - math.exp(-over_s / memory_s)
    return before + (value - before) * share
