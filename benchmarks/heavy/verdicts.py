"""Targets and what measurements say of them. Pure: no clock, no servers."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Verdict", "at_least", "at_most", "full_again", "growth", "pause", "percentile", "told"]

WINDOW_S = 1.0
FULL = 0.9
"""Throughput counts as full again at this share of what it was."""


@dataclass(frozen=True)
class Verdict:
    """One figure. `target` is empty for one that is only told; `met` is None then, and when it was not measured."""

    name: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None
    note: str = ""


def told(name: str, value: float | None, unit: str, note: str = "") -> Verdict:
    """A figure without a target."""
    return Verdict(name, value, unit, note=note)


def at_most(name: str, value: float | None, limit: float, unit: str, note: str = "") -> Verdict:
    """Met when it was measured and is not above."""
    return Verdict(name, value, unit, f"≤ {limit:g}", None if value is None else value <= limit, note)


def at_least(name: str, value: float | None, limit: float, unit: str, note: str = "") -> Verdict:
    """Met when it was measured and is not below."""
    return Verdict(name, value, unit, f"≥ {limit:g}", None if value is None else value >= limit, note)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; 0 when there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def growth(series: Sequence[float]) -> float | None:
    """How many times larger the last third is than the second one, by medians; the first third is for warming up.

    None when there are fewer than three values, or nothing to compare with.
    """
    third = len(series) // 3
    if third == 0:
        return None
    middle = statistics.median(series[-2 * third : -third])
    return statistics.median(series[-third:]) / middle if middle > 0 else None


def full_again(ends: Sequence[float], struck: float, before_per_s: float) -> float | None:
    """Seconds after `struck` until a window of a second begins in which so much ends as before. None: never.

    `ends`: moments at which runs ended, sorted. Windows begin at the strike and every tenth of a second after it; the
    last one lies within what was observed. It must have been less in between to count as later than 0.
    """
    if not ends:
        return None
    at = struck
    while at + WINDOW_S <= ends[-1]:
        ended = bisect.bisect_left(ends, at + WINDOW_S) - bisect.bisect_left(ends, at)
        if ended >= FULL * before_per_s * WINDOW_S:
            return at - struck
        at += 0.1
    return None


def pause(ends: Sequence[float], struck: float) -> float | None:
    """The longest time after `struck` in which nothing ended; None when nothing did. `ends`: sorted."""
    later = [struck, *ends[bisect.bisect_left(ends, struck) :]]
    return max((b - a for a, b in itertools.pairwise(later)), default=None)
