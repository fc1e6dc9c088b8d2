"""How long legs take, learned as they end: a sketch of quantiles that forgets, one for each kind of leg. Pure.

The sketch counts logarithmic buckets, so that any quantile is within 5 % whatever the scale (Masson, Rim, Lee,
"DDSketch", VLDB 2019). It forgets by weight: what was seen a half-life ago counts half. Instead of shrinking all
counts at each turn, new ones are counted heavier, and all are scaled down when numbers grow large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Self

__all__ = ["DurationBook", "DurationSketch"]

_GAMMA: Final = 1.1
_LOG_GAMMA: Final = math.log(_GAMMA)
_LEAST_S: Final = 1e-3
_MOST_S: Final = 30 * 86_400.0
_HALF_LIFE_S: Final = 6 * 3_600.0
_RESCALE_AT: Final = 2.0**40
_CUT: Final = 0.99
_ENOUGH: Final = 5.0
_FORGOTTEN: Final = 1e-6


class DurationSketch:
    """Decayed quantiles of durations from 1 ms to 30 days; at most 230 counts. Not thread-safe."""

    __slots__ = ("_counts", "_half_life_s", "_origin", "_squares", "_sum", "_weight")

    def __init__(self, half_life_s: float = _HALF_LIFE_S) -> None:
        self._half_life_s = max(1.0, half_life_s)
        self._origin: float | None = None
        self._counts: dict[int, float] = {}
        self._weight = 0.0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, seconds: float, at: float, times: int = 1) -> None:
        """With one duration, or several equal ones, that ended at `at` (epoch seconds). Not a number: ignored."""
        if not math.isfinite(seconds) or times <= 0:
            return
        seconds = min(_MOST_S, max(_LEAST_S, seconds))
        weight = times * self._scale(at)
        bucket = math.ceil(math.log(seconds) / _LOG_GAMMA)
        self._counts[bucket] = self._counts.get(bucket, 0.0) + weight
        self._weight += weight
        self._sum += weight * seconds
        self._squares += weight * seconds * seconds

    def weight(self, at: float) -> float:
        """How many durations are remembered, old ones in part."""
        if self._origin is None:
            return 0.0
        # First: it may scale the weight down.
        scale = self._scale(at)
        return self._weight / scale

    @property
    def mean(self) -> float | None:
        """Seconds; None before the first."""
        return self._sum / self._weight if self._weight > 0 else None

    @property
    def spread(self) -> float:
        """Coefficient of variation; 1 before the first."""
        mean = self.mean
        if mean is None:
            return 1.0
        return math.sqrt(max(0.0, self._squares / self._weight - mean * mean)) / mean

    @property
    def cut_mean(self) -> float | None:
        """Mean of durations cut at the 99th percentile, within 5 %; None before the first.

        With `Observation.overstaying` it makes the load exact: legs hold their slots for this long on average, and
        those that are older are counted one by one. A few legs that never end do not make all others look long.
        """
        return self._cut()[0]

    @property
    def cut_spread(self) -> float:
        """Coefficient of variation of durations cut at the 99th percentile; 1 before the first."""
        return self._cut()[1]

    def _cut(self) -> tuple[float | None, float]:
        most = self.quantile(_CUT)
        if most is None:
            return None, 1.0
        held = [(min(most, _middle(bucket)), count) for bucket, count in self._counts.items()]
        mean = sum(seconds * count for seconds, count in held) / self._weight
        squares = sum(seconds * seconds * count for seconds, count in held) / self._weight
        return mean, math.sqrt(max(0.0, squares - mean * mean)) / mean

    def quantile(self, share: float) -> float | None:
        """The duration that `share` (0 to 1) of all do not exceed, within 5 %; None before the first."""
        if self._weight <= 0:
            return None
        left = min(1.0, max(0.0, share)) * self._weight
        bucket = 0
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 1e-9 * self._weight:
                break
        return _middle(bucket)

    def _scale(self, at: float) -> float:
        """Weight of one duration seen at a moment; moments before the first count as the first."""
        if self._origin is None:
            self._origin = at
        scale: float = 2.0 ** min(1_000.0, max(0.0, (at - self._origin) / self._half_life_s))
        if scale < _RESCALE_AT:
            return scale
        kept = {bucket: count / scale for bucket, count in self._counts.items()}
        self._counts = {bucket: count for bucket, count in kept.items() if count > _FORGOTTEN}
        self._weight = sum(self._counts.values())
        self._sum, self._squares = self._sum / scale, self._squares / scale
        if not self._counts:
            self._sum = self._squares = 0.0
        self._origin = at
        return 1.0

    def to_json(self) -> dict[str, Any]:
        """The whole sketch; some kilobytes at most."""
        return {
            "half_life_s": self._half_life_s,
            "origin": self._origin,
            "counts": {str(bucket): count for bucket, count in sorted(self._counts.items())},
            "sum": self._sum,
            "squares": self._squares,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError when the document is no sketch."""
        sketch = cls(float(document["half_life_s"]))
        sketch._origin = None if document["origin"] is None else float(document["origin"])
        sketch._counts = {int(bucket): float(count) for bucket, count in document["counts"].items()}
        sketch._weight = sum(sketch._counts.values())
        sketch._sum, sketch._squares = float(document["sum"]), float(document["squares"])
        return sketch


def _middle(bucket: int) -> float:
    """The duration that stands for a bucket."""
    return float(2 * _GAMMA**bucket / (_GAMMA + 1))


class DurationBook:
    """Sketches by kind of leg (a workflow, or a workflow and step), with the pool's own for kinds that are new.

    At most `most_kinds` are kept; the one that was not seen for longest goes first. Not thread-safe.
    """

    def __init__(self, half_life_s: float = _HALF_LIFE_S, most_kinds: int = 2_000, default_s: float = 1.0) -> None:
        self._half_life_s = half_life_s
        self._most_kinds = max(1, most_kinds)
        self._default_s = default_s
        self._kinds: dict[str, DurationSketch] = {}
        self._all = DurationSketch(half_life_s)

    def add(self, kind: str, seconds: float, at: float) -> None:
        """With one duration that ended at `at`."""
        sketch = self._kinds.pop(kind, None) or DurationSketch(self._half_life_s)
        self._kinds[kind] = sketch
        while len(self._kinds) > self._most_kinds:
            del self._kinds[next(iter(self._kinds))]
        sketch.add(seconds, at)
        self._all.add(seconds, at)

    @property
    def pool(self) -> DurationSketch:
        """All kinds together, in the mix in which they came."""
        return self._all

    def mean(self, kind: str | None = None, at: float | None = None) -> float:
        """Mean time of a kind, cut at its 99th percentile, drawn towards the pool's while few were seen; of the pool
        without a kind; else the default."""
        whole = self._all.cut_mean
        pool_s = self._default_s if whole is None else whole
        sketch = None if kind is None else self._kinds.get(kind)
        own_s = None if sketch is None else sketch.cut_mean
        if sketch is None or own_s is None:
            return pool_s
        weight = sketch.weight(at) if at is not None else _ENOUGH
        return (own_s * weight + pool_s) / (weight + 1)

    def mean_of(self, waiting: Iterable[tuple[str, int]], at: float | None = None) -> float:
        """Mean time of a mix of kinds, such as a backlog's; of the pool when nothing waits."""
        total, legs = 0.0, 0
        for kind, count in waiting:
            total, legs = total + self.mean(kind, at) * count, legs + count
        return total / legs if legs else self.mean()

    def quantile(self, share: float, kind: str | None = None, at: float | None = None) -> float | None:
        """A quantile of a kind, or of the pool while fewer than five of the kind are remembered; None when nothing is
        known."""
        sketch = None if kind is None else self._kinds.get(kind)
        if sketch is None or (at is not None and sketch.weight(at) < _ENOUGH):
            sketch = self._all
        return sketch.quantile(share)

    def to_json(self) -> dict[str, Any]:
        """The whole book, kinds in the order in which they were seen last."""
        return {
            "half_life_s": self._half_life_s,
            "kinds": {kind: sketch.to_json() for kind, sketch in self._kinds.items()},
            "all": self._all.to_json(),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], most_kinds: int = 2_000, default_s: float = 1.0) -> Self:
        """Raises KeyError, TypeError or ValueError when the document is no book."""
        book = cls(float(document["half_life_s"]), most_kinds, default_s)
        kept = list(document["kinds"].items())[-book._most_kinds :]
        book._kinds = {str(kind): DurationSketch.from_json(sketch) for kind, sketch in kept}
        book._all = DurationSketch.from_json(document["all"])
        return book
