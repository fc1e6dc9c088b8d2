"""Which workers of a pool are outliers: their calls of a function fail, or take longer, than those of the others. Pure.

For each function that enough workers called often enough, each worker's share of failed calls and mean duration is
compared with the median of all, in units of the scaled median absolute deviation (1.4826 MAD, which for a normal
distribution is its standard deviation). Medians do not move when one worker goes mad, so it cannot hide behind itself;
least differences keep workers that differ by next to nothing apart from those that differ. When an outside service
fails it fails for all workers, so nobody stands out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from flint_ops.config import QuarantineSettings

__all__ = ["Figures", "Outlier", "outliers"]

_SCALE: Final = 1.4826
_LEAST_MS: Final = 50.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Calls of one function by one worker within the window."""

    calls: int = 0
    errors: int = 0
    duration_ms: int = 0

    @property
    def error_share(self) -> float:
        """0 to 1."""
        return self.errors / self.calls if self.calls else 0.0

    @property
    def mean_ms(self) -> float:
        """Mean duration."""
        return self.duration_ms / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Outlier:
    """A worker that stands out. `distance`: from the median, in scaled deviations; `reason` in words."""

    worker: str
    distance: float
    reason: str


def outliers(workers: Mapping[str, Mapping[str, Figures]], settings: QuarantineSettings) -> list[Outlier]:
    """Outliers of one pool, the worst first. `workers`: figures by function, by worker."""
    found: dict[str, Outlier] = {}
    functions = {function for figures in workers.values() for function in figures}
    for function in sorted(functions):
        told = {
            worker: figures[function]
            for worker, figures in workers.items()
            if function in figures and figures[function].calls >= settings.minimum_calls
        }
        if len(told) < settings.minimum_workers:
            continue
        for outlier in (*_failing(function, told, settings), *_slow(function, told, settings)):
            known = found.get(outlier.worker)
            if known is None or outlier.distance > known.distance:
                found[outlier.worker] = outlier
    return sorted(found.values(), key=lambda outlier: (-outlier.distance, outlier.worker))


def _failing(function: str, told: Mapping[str, Figures], settings: QuarantineSettings) -> list[Outlier]:
    shares = {worker: figures.error_share for worker, figures in told.items()}
    middle, spread = _robust(list(shares.values()), settings.error_share / settings.deviations)
    found = []
    for worker, share in shares.items():
        distance = (share - middle) / spread
        if share - middle >= settings.error_share and distance >= settings.deviations:
            figures = told[worker]
            reason = (
                f"{share:.0%} of its {figures.calls} calls of {function} failed; the median of {len(told)} workers is "
                f"{middle:.0%}"
            )
            found.append(Outlier(worker, distance, reason))
    return found


def _slow(function: str, told: Mapping[str, Figures], settings: QuarantineSettings) -> list[Outlier]:
    means = {worker: figures.mean_ms for worker, figures in told.items()}
    middle, spread = _robust(list(means.values()), _LEAST_MS / settings.deviations)
    found = []
    for worker, mean in means.items():
        distance = (mean - middle) / spread
        if mean >= max(settings.slowness * middle, middle + _LEAST_MS) and distance >= settings.deviations:
            reason = (
                f"its {told[worker].calls} calls of {function} took {mean:.0f} ms on average; the median of "
                f"{len(told)} workers is {middle:.0f} ms"
            )
            found.append(Outlier(worker, distance, reason))
    return found


def _robust(values: list[float], least: float) -> tuple[float, float]:
    """Median and scaled median absolute deviation, the latter never below `least`."""
    middle = median(values)
    return middle, max(_SCALE * median(abs(value - middle) for value in values), least)
