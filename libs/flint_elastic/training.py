"""Learning the daily and weekly pattern of arrivals. Takes seconds: for a process of its own, never the one that
decides.

    python -m flint_elastic.training < history.json > training.json

reads `ArrivalHistory.to_json()` and writes `Training.to_json()`. Two ways of forecasting stand for election:

- "mstl": the decomposition of statsmodels (Bandara, Hyndman, Bergmeir, "MSTL", 2021) into day, week, trend and rest,
  of square roots, whose scatter does not grow with the rate; what is left after day and week goes on at its level. From
  more than two days (weeks) that are not held back on.
- "seasonal naive": see `history`. From one day on, and alone where statsmodels is not installed (extra `forecast`).

Both forecast the last week of the history (the last day, when it is short) without having seen it. They are mixed by
how well they did, and the mix starts with the trust that it earned there: a history without a pattern, or one that
broke, gives a forecast that moves nothing.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from flint_elastic.forecast import BUCKET_S, Forecast
from flint_elastic.history import DAY, WEEK, ArrivalHistory, seasonal_naive
from flint_elastic.tracking import LOOK_AHEAD, Tracker

__all__ = ["Training", "train"]

_LONGEST_INPUT: Final = 4 * 1024 * 1024
_LEAST_ERROR: Final = 1e-9
# Trends are smooth: fitting them at every fourth hour and drawing lines between is forty times as fast.
_STL: Final = {"robust": True, "outer_iter": 3, "trend_jump": 48, "low_pass_jump": 48}
_Model = Callable[[list[float], float, int], Forecast]


@dataclass(frozen=True, slots=True)
class Training:
    """What was learned."""

    forecast: Forecast
    """With the trust that it earned on the days that were held back."""
    tracker: Tracker
    """To go on from with what really comes."""
    errors: dict[str, float] = field(default_factory=dict)
    """Root of the mean squared error of each model on those days, arrivals per second; "unchanged" is what no model at
    all errs over the look-ahead of a decision."""

    def to_json(self) -> dict[str, Any]:
        """All members."""
        return {
            "forecast": self.forecast.to_json(),
            "tracker": self.tracker.to_json(),
            "errors": {name: round(error, 6) for name, error in self.errors.items()},
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Training:
        """Raises KeyError, TypeError or ValueError when the document is no training."""
        errors = {str(name): float(error) for name, error in document["errors"].items()}
        return cls(Forecast.from_json(document["forecast"]), Tracker.from_json(document["tracker"]), errors)


def train(history: ArrivalHistory, buckets: int = 2 * DAY, library: bool = True) -> Training:
    """The forecast of the next `buckets` buckets after the history. Without a day of history: an empty one.

    `library`: whether statsmodels may be used where it is installed.
    """
    rates, ends_at = history.rates(), history.ends_at
    models: dict[str, _Model] = {"seasonal naive": seasonal_naive}
    if len(rates) < 2 * DAY:
        # Nothing can be held back: forecast, and leave the trust to what comes.
        return Training(seasonal_naive(rates, ends_at, buckets), Tracker())
    back = _held_back(len(rates))
    shown, held = rates[:-back], rates[-back:]
    periods = [period for period in (DAY, WEEK) if len(shown) > 2 * period]
    if library and periods and _installed():
        models["mstl"] = partial(_mstl, periods)
    shown_until = ends_at - back * BUCKET_S
    tried = {name: model(shown, shown_until, back) for name, model in models.items()}
    errors = {name: _error(list(forecast.rates), held) for name, forecast in tried.items()}
    shares = _shares(errors)
    tracker = _earned(_mix(tried, shares), rates, back, ends_at)
    forecast = _mix({name: models[name](rates, ends_at, buckets) for name in shares}, shares)
    unchanged = _error(rates[-back - LOOK_AHEAD : -LOOK_AHEAD], held)
    return Training(tracker.weighed(forecast), tracker, errors | {"unchanged": unchanged})


def _held_back(have: int) -> int:
    """Buckets that models are tried on: a week where a week is left to learn from, else a day."""
    return min(WEEK, have - WEEK) // DAY * DAY if have >= WEEK + DAY else DAY


def _shares(errors: dict[str, float]) -> dict[str, float]:
    """By the inverse of squared errors."""
    weights = {name: 1 / max(error * error, _LEAST_ERROR) for name, error in errors.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _mix(forecasts: dict[str, Forecast], shares: dict[str, float]) -> Forecast:
    first = next(iter(forecasts.values()))
    if len(shares) == 1:
        return forecasts[next(iter(shares))]
    rates = tuple(
        sum(share * forecasts[name].rates[index] for name, share in shares.items()) for index in range(len(first.rates))
    )
    source = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items()))
    return Forecast(starts_at=first.starts_at, rates=rates, source=source)


def _earned(forecast: Forecast, rates: list[float], held: int, ends_at: float) -> Tracker:
    """The tracker after the last buckets of the history, for a forecast that was made before them."""
    tracker = Tracker()
    for back in range(held - LOOK_AHEAD, 0, -1):
        tracker = tracker.observe(forecast, rates[-back - LOOK_AHEAD], rates[-back], ends_at - (back - 1) * BUCKET_S)
    return tracker


def _error(forecast: list[float], came: list[float]) -> float:
    return math.sqrt(sum((one - other) ** 2 for one, other in zip(forecast, came, strict=True)) / len(came))


def _installed() -> bool:
    try:
        importlib.import_module("statsmodels.tsa.seasonal")
    except ImportError:
        return False
    return True


def _mstl(periods: list[int], rates: list[float], ends_at: float, buckets: int) -> Forecast:
    seasonal = importlib.import_module("statsmodels.tsa.seasonal")
    smoothing = importlib.import_module("statsmodels.tsa.holtwinters")
    numpy = importlib.import_module("numpy")
    values = numpy.sqrt(numpy.asarray(rates, dtype=float))
    parts = seasonal.MSTL(values, periods=periods, iterate=2, stl_kwargs=dict(_STL)).fit()
    found = numpy.asarray(parts.seasonal).reshape(len(rates), -1)
    rest = values - found.sum(axis=1)
    level = smoothing.SimpleExpSmoothing(rest, initialization_method="estimated").fit().forecast(1)[0]
    ahead = numpy.full(buckets, float(level))
    for column, period in enumerate(periods):
        ahead += found[-period:, column][numpy.arange(buckets) % period]
    forecast = numpy.square(numpy.maximum(ahead, 0.0))
    return Forecast(starts_at=ends_at, rates=tuple(float(rate) for rate in forecast), source="mstl")


def _main() -> int:
    text = sys.stdin.buffer.read(_LONGEST_INPUT + 1)
    if len(text) > _LONGEST_INPUT:
        sys.stderr.write(f"the history is longer than {_LONGEST_INPUT} bytes\n")
        return 2
    try:
        history = ArrivalHistory.from_json(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        sys.stderr.write(f"no history of arrivals: {error!r}\n")
        return 2
    sys.stdout.write(json.dumps(train(history).to_json()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
