"""From an observation and a forecast to the slots that are wanted, part by part. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flint_elastic.decision import PoolState
from flint_elastic.forecast import Forecast
from flint_elastic.observation import Coming, Observation, WorkerState
from flint_elastic.policy import PoolPolicy
from flint_elastic.queueing import slots_for_backlog, slots_for_load

__all__ = ["Needs", "needs_of", "starting_in_time"]

_GIVEN_UP_AFTER: Final = 5.0
_LEAST_PATIENCE_S: Final = 60.0
_MOST_VARIABLE: Final = 25.0


@dataclass(frozen=True, slots=True)
class Needs:
    """Slots that are wanted, in parts. `now`: until a worker asked for now could help; `keep`: over the time of
    idleness too."""

    steady: float
    running: float
    backlog: float
    overstaying: float
    coming: float
    forecast: float
    reserved: float
    keep_coming: float
    keep_forecast: float
    leg_s: float
    startup_s: float
    load: float
    counted: int
    """Waiting legs that count: those that more workers would help."""

    @property
    def now(self) -> float:
        """Slots that are wanted as soon as they can be had."""
        return (
            self.steady + self.running + self.backlog + self.overstaying + self.coming + self.forecast + self.reserved
        )

    @property
    def keep(self) -> float:
        """Slots that are not worth giving away: they would be asked for again before the time of idleness is over."""
        return self.now - self.coming - self.forecast + self.keep_coming + self.keep_forecast

    def to_json(self) -> dict[str, float]:
        """The parts, rounded to a hundredth of a slot."""
        parts = (
            "steady",
            "running",
            "backlog",
            "overstaying",
            "coming",
            "forecast",
            "reserved",
            "keep_coming",
            "keep_forecast",
        )
        return {name: round(getattr(self, name), 2) for name in parts} | {
            "now": round(self.now, 2),
            "keep": round(self.keep, 2),
            "load": round(self.load, 3),
            "counted_backlog": self.counted,
        }


def needs_of(policy: PoolPolicy, state: PoolState, seen: Observation, forecast: Forecast) -> Needs:
    """The slots that a pool wants. `state` already knows the observation's rate and what is stuck."""
    leg_s = max(seen.leg_s, 1e-3)
    startup_s = policy.startup_s if seen.startup_s is None else max(0.0, seen.startup_s)
    rate = state.rate.per_s
    variability = min(_MOST_VARIABLE, (state.rate.dispersion + seen.leg_spread**2) / 2)

    def slots(per_s: float) -> float:
        # So rare that a worker would be ended in between: the first one that comes starts it.
        if per_s * max(policy.idle_before_end_s, 1.0) < 1:
            return 0.0
        return float(slots_for_load(per_s * leg_s, policy.target_wait_s, leg_s, variability))

    steady = slots(rate)
    soon = seen.at + startup_s + forecast.bucket_s / 10
    late = soon + policy.idle_before_end_s
    rise, keep_rise = (slots(rate + forecast.rise(seen.at, until)) - steady for until in (soon, late))
    coming = _coming(seen.coming, seen.at, soon, policy.target_wait_s, leg_s)
    keep_coming = _coming(seen.coming, seen.at, late, policy.target_wait_s, leg_s)
    if forecast.includes_known:
        rise, keep_rise = max(0.0, rise - coming), max(0.0, keep_rise - keep_coming)
    backlog, counted = _backlog(policy, state, seen, leg_s, startup_s)
    # Slots that are held now come back only as their legs end: until new workers help, this many of them do not.
    ahead_s = max(policy.target_wait_s, startup_s)
    held = slots_for_backlog(max(0, seen.running - seen.overstaying) + rate * ahead_s, ahead_s, leg_s)
    return Needs(
        steady=steady,
        running=max(0.0, held - steady) if seen.running > seen.overstaying else 0.0,
        backlog=backlog,
        overstaying=float(seen.overstaying),
        coming=coming,
        forecast=rise,
        reserved=float(policy.buffer_slots + policy.standby_slots),
        keep_coming=max(coming, keep_coming),
        keep_forecast=max(rise, keep_rise),
        leg_s=leg_s,
        startup_s=startup_s,
        load=rate * leg_s,
        counted=counted,
    )


def starting_in_time(seen: Observation, startup_s: float) -> list[int]:
    """Slots of workers that start and may still be believed in: others have taken five times as long as usual."""
    patience_s = max(_GIVEN_UP_AFTER * startup_s, _LEAST_PATIENCE_S)
    starting = (worker for worker in seen.workers if worker.state is WorkerState.STARTING)
    return [worker.slots for worker in starting if seen.at - worker.started_at <= patience_s]


def _backlog(
    policy: PoolPolicy, state: PoolState, seen: Observation, leg_s: float, startup_s: float
) -> tuple[float, int]:
    """Slots on top of the steady ones, and how many waiting legs were counted.

    New workers help after their start-up, so the queue is looked at as it will be then: longer by what arrives beyond
    what the ready slots finish, shorter by what they finish beyond what arrives. A queue that is gone by then needs
    nobody.
    """
    counted = max(0, seen.waiting - state.stuck)
    if not counted:
        return 0.0, 0
    ready = sum(worker.slots for worker in seen.workers if worker.state is WorkerState.READY)
    free = sum(max(0, w.slots - w.legs) for w in seen.workers if w.state is WorkerState.READY)
    if free >= counted:
        return 0.0, counted
    began = [worker.started_at for worker in seen.workers if worker.state is WorkerState.STARTING]
    ahead_s = max(0.0, startup_s - (seen.at - min(began))) if began else startup_s
    serving = max(0, ready - seen.overstaying)
    arriving = state.rate.latest if state.rate.spiking else state.rate.per_s
    growth = (arriving - serving / leg_s) * ahead_s
    alike = 0.0
    if any(entry.oldest_wait_s > policy.target_of(entry.level) for entry in seen.backlog):
        # The queue did not do what the learned times say: they get no credit. And who waits behind legs that stay may
        # be of their kind: of such a share, one slot each.
        growth = max(0.0, growth)
        alike = min(1.0, seen.overstaying / max(1, seen.running))
    share = counted / seen.waiting
    total = max(0.0, counted - free + growth) / counted
    wanted = 0.0
    for entry in seen.backlog:
        target_s = policy.target_of(entry.level)
        # What is late already is not made good by aiming at less than workers need to start.
        within_s = max(target_s - entry.oldest_wait_s, target_s / 4, startup_s)
        own_s = leg_s if entry.leg_s is None else max(entry.leg_s, 1e-3)
        legs = entry.waiting * share * total
        wanted += alike * legs + (1 - alike) * slots_for_backlog(legs, within_s, own_s)
    return wanted, counted


def _coming(coming: tuple[Coming, ...], now: float, until: float, target_s: float, leg_s: float) -> float:
    """Slots for the densest moment of what is known to come: legs that are due within one target, or hold slots from
    before."""
    ahead = [entry for entry in coming if now - target_s <= entry.at <= until and entry.legs > 0]
    if not ahead:
        return 0.0
    most, first, held = 0.0, 0, 0.0
    wanted = [
        slots_for_backlog(entry.legs, target_s, leg_s if entry.leg_s is None else max(entry.leg_s, 1e-3))
        for entry in ahead
    ]
    for index, entry in enumerate(ahead):
        held += wanted[index]
        while ahead[first].at + (ahead[first].leg_s or leg_s) + target_s < entry.at:
            held -= wanted[first]
            first += 1
        most = max(most, held)
    return most
