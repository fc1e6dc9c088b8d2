"""Days to simulate: when legs become ready and how long each holds a slot. Seeded. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from flint_elastic.forecast import BUCKET_S
from flint_elastic.history import ArrivalHistory
from flint_elastic.observation import Coming

__all__ = ["DAYS", "DAY_S", "Day", "recorded_day"]

DAY_S: Final = 86_400.0
_LEARNED_DAYS: Final = 21
_MONDAY: Final = 4 * DAY_S
_BEGIN: Final = _MONDAY + (_LEARNED_DAYS + 1) * DAY_S
"""The simulated day is a Tuesday after three weeks that were watched."""
_LEG_S: Final = 2.0
_SIGMA: Final = 0.8
_MOST_ARRIVALS: Final = 5_000_000


@dataclass(frozen=True, slots=True)
class Day:
    """What happens, whoever decides. Times are epoch seconds; arrivals in order."""

    name: str
    about: str
    starts_at: float
    arrivals: list[float]
    durations: list[float]
    coming: tuple[Coming, ...] = ()
    """What was known in advance, in order of time."""
    history: ArrivalHistory = field(default_factory=ArrivalHistory)
    """What arrived unannounced in the weeks before."""
    lasts_s: float = DAY_S

    @property
    def work_s(self) -> float:
        """Slot-seconds of all legs, as far as they lie in the day."""
        until = self.starts_at + self.lasts_s
        return sum(min(took, until - at) for at, took in zip(self.arrivals, self.durations, strict=True))


_Rate = Callable[[float], float]


def _steady(_: float) -> float:
    return 4.0


def _spike(moment: float) -> float:
    hour = _hour(moment)
    return 25.0 if 10 <= hour < 10.25 or 16 <= hour < 16.05 else 1.0


def _diurnal(moment: float) -> float:
    """Office hours on working days, a step at nine, quiet nights and weekends."""
    hour, weekday = _hour(moment), int((moment - _MONDAY) // DAY_S) % 7
    if weekday >= 5:
        return 0.3 + 0.6 * math.exp(-(((hour - 13) / 4) ** 2))
    busy = 0.3 + 5 * math.exp(-(((hour - 10.5) / 1.8) ** 2)) + 4 * math.exp(-(((hour - 15) / 2) ** 2))
    return busy + (9.0 if 9 <= hour < 9.3 else 0.0)


def _holiday(moment: float) -> float:
    return _diurnal(moment) if moment < _BEGIN else 0.3 + 0.6 * math.exp(-(((_hour(moment) - 13) / 4) ** 2))


def _flash(moment: float) -> float:
    hour = _hour(moment)
    if moment < _BEGIN or hour < 14:
        return 1.0
    since_s = (hour - 14) * 3_600
    return 1.0 + 30.0 * min(1.0, since_s / 60) * math.exp(-max(0.0, since_s - 60) / 1_800)


def _leak(moment: float) -> float:
    return 1.0 + 2.0 * max(0.0, moment - _BEGIN) / DAY_S


def _hour(moment: float) -> float:
    return (moment % DAY_S) / 3_600


def steady(seed: int) -> Day:
    """The same rate all day."""
    return _made("steady", "4 legs a second, all day", _steady, seed)


def spike(seed: int) -> Day:
    """Quiet, with two bursts that nobody announced."""
    return _made(
        "spike", "1 a second; 25 a second for 15 min at 10:00 and 3 min at 16:00, today only", _spike, seed, flat=1.0
    )


def diurnal(seed: int) -> Day:
    """A working day like the ones before it."""
    return _made(
        "diurnal",
        "a working day like others: 9 a second more from 9:00 to 9:18, two humps, quiet night",
        _diurnal,
        seed,
    )


def holiday(seed: int) -> Day:
    """A working day by the calendar, on which nobody works: the forecast is wrong."""
    return _made("holiday", "forecast as a working day, and nobody comes", _holiday, seed)


def flash_crowd(seed: int) -> Day:
    """From 1 to 31 a second within a minute, fading over hours."""
    return _made("flash crowd", "1 a second; at 14:00 within a minute 31 a second, fading over hours", _flash, seed)


def slow_leak(seed: int) -> Day:
    """Load creeps up, and one leg in two thousand holds its slot for hours."""
    day = _made("slow leak", "from 1 to 3 a second over the day; 1 leg in 2,000 holds its slot for 6 h", _leak, seed)
    chance = random.Random(f"leak {seed}")
    durations = [6 * 3_600.0 if chance.random() < 1 / 2_000 else duration for duration in day.durations]
    return Day(day.name, day.about, day.starts_at, day.arrivals, durations, (), day.history)


def schedules(seed: int) -> Day:
    """Little by itself, and a batch at each full hour that schedules announce."""
    day = _made("schedules", "1 a second, and 300 legs at each full hour by schedules", lambda _: 1.0, seed)
    chance = random.Random(f"schedules {seed}")
    batches = [day.starts_at + hour * 3_600.0 for hour in range(1, 24)]
    extra = [(moment + chance.random(), _duration(chance)) for moment in batches for _ in range(300)]
    both = sorted([*zip(day.arrivals, day.durations, strict=True), *extra])
    coming = tuple(Coming(moment, 300, _LEG_S) for moment in batches)
    return Day(day.name, day.about, day.starts_at, [at for at, _ in both], [s for _, s in both], coming, day.history)


DAYS: Final[dict[str, Callable[[int], Day]]] = {
    "steady": steady,
    "spike": spike,
    "diurnal": diurnal,
    "flash-crowd": flash_crowd,
    "slow-leak": slow_leak,
    "schedules": schedules,
    "holiday": holiday,
}
"""By the names of the command line; each takes a seed."""


def recorded_day(name: str, rows: Iterable[tuple[float, float]]) -> Day:
    """A day of (epoch seconds, seconds that the leg held a slot), in any order, at most five million.

    What lies before the last 24 hours is the history that forecasts learn from. Raises ValueError without rows or for
    numbers that are none.
    """
    legs = sorted(rows)
    if not legs or len(legs) > _MOST_ARRIVALS:
        raise ValueError(f"a recorded day has 1 to {_MOST_ARRIVALS} legs; there are {len(legs)}")
    if not all(math.isfinite(at) and math.isfinite(took) and at >= 0 and took >= 0 for at, took in legs):
        raise ValueError("times and durations are finite and not negative")
    starts_at = max(legs[0][0], math.floor((legs[-1][0] - DAY_S) / BUCKET_S + 1) * BUCKET_S)
    history = ArrivalHistory()
    for at, _ in legs:
        if at < starts_at:
            history.add(at, 1)
    if len(history):
        history.add(starts_at, 0)
    today = [(at, max(1e-3, took)) for at, took in legs if at >= starts_at]
    return Day(
        name,
        f"recorded: {len(today)} legs",
        starts_at,
        [at for at, _ in today],
        [took for _, took in today],
        (),
        history,
        min(DAY_S, today[-1][0] - starts_at + 60),
    )


def _made(name: str, about: str, rate: _Rate, seed: int, flat: float | None = None) -> Day:
    chance = random.Random(f"{name} {seed}")
    history = ArrivalHistory()
    for bucket in range(int(_LEARNED_DAYS * DAY_S / BUCKET_S)):
        moment = _BEGIN - _LEARNED_DAYS * DAY_S + bucket * BUCKET_S
        mean = (rate(moment + BUCKET_S / 2) if flat is None else flat) * BUCKET_S
        history.add(moment, max(0.0, round(chance.gauss(mean, math.sqrt(mean)))))
    history.add(_BEGIN, 0)
    arrivals = []
    for second in range(int(DAY_S)):
        moment = _BEGIN + second
        mean, at = rate(moment), 0.0
        # A Poisson process, second by second: gaps until the second is full.
        while (at := at + chance.expovariate(mean)) < 1.0:
            arrivals.append(moment + at)
    durations = [_duration(chance) for _ in arrivals]
    return Day(name, about, _BEGIN, arrivals, durations, (), history)


def _duration(chance: random.Random) -> float:
    """Log-normal with the mean of `_LEG_S`: most legs are short, some are long."""
    return chance.lognormvariate(math.log(_LEG_S) - _SIGMA**2 / 2, _SIGMA)
