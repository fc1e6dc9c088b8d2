"""The decision: how many workers to start, which to drain, which to end. Pure, and the same code in the simulator.

Up is quick and down is slow. Up follows the present need, within one decision. Down follows the greatest need of the
whole time of idleness, so that what comes and goes within it moves nothing, and drains first: a worker is ended only
when it was seen draining and without a leg.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from flint_elastic.decision import Decision, PoolState
from flint_elastic.forecast import NO_FORECAST, Forecast
from flint_elastic.needs import Needs, needs_of, starting_in_time
from flint_elastic.observation import Observation, WorkerState, WorkerView
from flint_elastic.policy import PoolPolicy
from flint_elastic.wording import explain

__all__ = ["decide"]

_PEAK_STRETCHES: Final = 30
_MOST_REGRETS: Final = 3
_REGRET_MARGIN: Final = 0.25
_REGRET_S: Final = 1_800.0
_REGRET_SHARE: Final = 0.75
_FORGIVE_S: Final = 4 * 3_600.0
_STUCK_AFTER_S: Final = 15.0
_STUCK_FOR_S: Final = 120.0
_LONGEST_BACKOFF_S: Final = 300.0
_MOST_DOUBLINGS: Final = 10
_URGENT_SHARE: Final = 0.25
_DEAD_BAND: Final = 0.1


def decide(policy: PoolPolicy, state: PoolState, seen: Observation, forecast: Forecast = NO_FORECAST) -> Decision:
    """One decision from what is seen now, what was decided before and what is expected.

    `state` is `Decision.state` of the decision before, or an empty one. Promises: the workers that are ready or
    starting never go below the minimum by it nor all workers above the maximum; nothing is ended that was not seen
    draining without a leg; one decision answers a spike, up to `maximum_step_up`; the same arguments give the same
    decision.
    """
    state = _noticed(policy, state, seen)
    at = state.at if state.at is not None else seen.at
    needs = needs_of(policy, state, seen, forecast)
    state = replace(state, peaks=_peaks(policy, state.peaks, at, math.ceil(needs.keep)))
    live = [worker for worker in seen.workers if worker.state in (WorkerState.STARTING, WorkerState.READY)]
    draining = [worker for worker in seen.workers if worker.state is WorkerState.DRAINING]
    capacity = sum(w.slots for w in live if w.state is WorkerState.READY) + sum(starting_in_time(seen, needs.startup_s))
    missing = max(math.ceil((needs.now - capacity) / policy.slots_per_worker - 1e-9), policy.minimum - len(live), 0)
    wanted = min(policy.maximum, max(policy.minimum, math.ceil(needs.now / policy.slots_per_worker - 1e-9)))
    decision = Decision(at=at, wanted=wanted, wanted_slots=round(needs.now, 3), shadow=policy.shadow, state=state)
    held_by = ""
    if missing:
        held_by = _holds_up(policy, state, seen, needs, missing, len(live), at)
        if not held_by:
            decision = _up(policy, decision, seen, live, draining, missing)
    else:
        ended = tuple(worker.id for worker in draining if worker.legs == 0)
        decision = replace(decision, end=ended, drain=_down(policy, state, seen, needs, live, at))
    if decision.start or decision.revive:
        decision = replace(decision, state=_up_again(state, len(live) + decision.start + len(decision.revive), at))
    elif decision.drain:
        decision = replace(decision, state=replace(state, last_down_at=at, drained_from=len(live)))
    return replace(
        decision,
        why=explain(policy, decision, seen, needs, forecast, capacity, missing, held_by),
        inputs=_inputs(policy, decision.state, seen, needs, forecast, at),
    )


def _noticed(policy: PoolPolicy, state: PoolState, seen: Observation) -> PoolState:
    """The state with what the observation tells about rates and about legs that no slot helps."""
    at = seen.at if state.at is None else max(seen.at, state.at)
    since = at if state.since is None else state.since
    over_s = 1.0 if state.at is None else at - state.at
    if state.regrets and at - state.regretted_at > _FORGIVE_S:
        state = replace(state, regrets=state.regrets - 1, regretted_at=at)
    state = replace(state, at=at, since=since, rate=state.rate.observe(seen.arrivals_per_s, over_s))
    free = sum(max(0, w.slots - w.legs) for w in seen.workers if w.state is WorkerState.READY) - policy.standby_slots
    if not seen.waiting:
        return replace(state, stuck=0, free_since=None, free_least=0)
    stuck = min(state.stuck, seen.waiting) if at - state.stuck_at <= _STUCK_FOR_S else 0
    if free <= 0:
        return replace(state, stuck=stuck, free_since=None, free_least=0)
    if state.free_since is None:
        return replace(state, stuck=stuck, free_since=at, free_least=seen.waiting)
    least = min(state.free_least, seen.waiting)
    if at - state.free_since < max(_STUCK_AFTER_S, policy.target_wait_s):
        return replace(state, stuck=stuck, free_least=least)
    return replace(state, stuck=least, free_least=least, stuck_at=at)


def _peaks(
    policy: PoolPolicy, peaks: tuple[tuple[float, int], ...], at: float, slots: int
) -> tuple[tuple[float, int], ...]:
    """Greatest needs of the stretches that an idle time consists of, this one included."""
    stretch_s = max(1.0, policy.idle_before_end_s / _PEAK_STRETCHES)
    began = math.floor(at / stretch_s) * stretch_s
    longest_s = policy.idle_before_end_s * 2**_MOST_REGRETS
    kept = [peak for peak in peaks if peak[0] + stretch_s > at - longest_s]
    if kept and kept[-1][0] >= began:
        return (*kept[:-1], (kept[-1][0], max(kept[-1][1], slots)))
    return (*kept, (began, slots))


def _up_again(state: PoolState, live: int, at: float) -> PoolState:
    """A start soon after a drain, of as many workers, says that the drain was wrong; a spike says nothing about it."""
    drained_at, state = state.last_down_at, replace(state, last_up_at=at)
    if drained_at is None or at - drained_at > _REGRET_S or drained_at <= state.regretted_at or state.rate.spiking:
        return state
    if live < _REGRET_SHARE * state.drained_from:
        return state
    return replace(state, regrets=min(_MOST_REGRETS, state.regrets + 1), regretted_at=at)


def _peak(policy: PoolPolicy, state: PoolState, at: float, over_s: float) -> int:
    """Greatest need of the last `over_s`, whole stretches."""
    stretch_s = max(1.0, policy.idle_before_end_s / _PEAK_STRETCHES)
    recent = (slots for began, slots in state.peaks if began + stretch_s > at - over_s)
    return max(recent, default=state.peaks[-1][1])


def _holds_up(
    policy: PoolPolicy, state: PoolState, seen: Observation, needs: Needs, missing: int, live: int, at: float
) -> str:
    """Why workers that are missing are not started yet; empty when they may be."""
    if state.last_up_at is None:
        return ""
    since_s = at - state.last_up_at
    if seen.start_failures > 0:
        wait_s = max(1.0, needs.startup_s) * 2.0 ** min(seen.start_failures, _MOST_DOUBLINGS)
        if since_s < min(_LONGEST_BACKOFF_S, wait_s):
            return f"starts fail ({seen.start_failures} in a row)"
    late = any(entry.waiting and entry.oldest_wait_s > policy.target_of(entry.level) for entry in seen.backlog)
    urgent = state.rate.spiking or late or live < policy.minimum or missing >= max(1.0, live * _URGENT_SHARE)
    if since_s < policy.cooldown_up_s and not urgent:
        return f"{policy.cooldown_up_s - since_s:.0f} s of the cool-down are left"
    return ""


def _up(
    policy: PoolPolicy,
    decision: Decision,
    seen: Observation,
    live: list[WorkerView],
    draining: list[WorkerView],
    missing: int,
) -> Decision:
    """Take back what drains, then start. A worker that drains with most legs would be there longest anyway."""
    wanted = min(missing, policy.maximum_step_up)
    room = max(0, policy.maximum - len(live))
    back = sorted(draining, key=lambda worker: (-worker.legs, worker.id))[: min(wanted, room)]
    start = max(0, min(wanted - len(back), policy.maximum - len(seen.workers)))
    return replace(decision, revive=tuple(worker.id for worker in back), start=start)


def _down(
    policy: PoolPolicy, state: PoolState, seen: Observation, needs: Needs, live: list[WorkerView], at: float
) -> tuple[str, ...]:
    """Workers to drain: those that were idle long enough first, then, when allowed, those with fewest legs."""
    ready = sorted(
        (worker for worker in live if worker.state is WorkerState.READY), key=lambda w: (w.legs, w.started_at, w.id)
    )
    excess = len(seen.workers) - policy.maximum - sum(w.state is WorkerState.DRAINING for w in seen.workers)
    if excess > 0:
        # The bound was lowered: no idle time, no cool-down. Whoever leaves for another reason counts until gone.
        spare = max(0, len(live) - policy.minimum)
        return tuple(worker.id for worker in ready[: min(excess, spare, policy.maximum_step_down)])
    moved = [moment for moment in (state.last_up_at, state.last_down_at) if moment is not None]
    if moved and at - max(moved) < policy.cooldown_down_s:
        return ()
    idle_s = policy.idle_before_end_s
    settled_s = idle_s * 2**state.regrets
    watched = policy.consolidate and state.since is not None and at - state.since >= settled_s
    spare_workers = min(len(live) - policy.minimum, policy.maximum_step_down)
    slots = sum(worker.slots for worker in live) - math.floor(needs.steady * _DEAD_BAND)
    peak = _peak(policy, state, at, idle_s)
    # What was regretted is a worker or so; a burst that is long over is none of it.
    settled = min(
        _peak(policy, state, at, settled_s), peak + policy.slots_per_worker + math.ceil(_REGRET_MARGIN * peak)
    )
    spare_slots, settled_slots = slots - peak, slots - settled
    chosen: list[str] = []
    for worker in ready:
        rested = worker.legs == 0 and worker.idle_since is not None and at - worker.idle_since >= idle_s
        spare = spare_slots if rested else settled_slots if watched else 0
        if len(chosen) < spare_workers and worker.slots <= spare:
            chosen.append(worker.id)
            spare_slots, settled_slots = spare_slots - worker.slots, settled_slots - worker.slots
    return tuple(chosen)


def _inputs(
    policy: PoolPolicy, state: PoolState, seen: Observation, needs: Needs, forecast: Forecast, at: float
) -> dict[str, object]:
    """What the decision was made of, for the ledger."""
    return {
        "observation": seen.to_json(),
        "rate": {
            "per_s": round(state.rate.per_s, 6),
            "dispersion": round(state.rate.dispersion, 3),
            "spiking": state.rate.spiking,
        },
        "needs": needs.to_json(),
        "stuck": state.stuck,
        "peak_slots": _peak(policy, state, at, policy.idle_before_end_s),
        "regrets": state.regrets,
        "forecast": {
            "source": forecast.source,
            "trust": round(forecast.trust, 4),
            "now": forecast.at(at),
            "rise": round(forecast.rise(at, at + policy.idle_before_end_s), 6),
        },
        "bounds": [policy.minimum, policy.maximum],
    }
