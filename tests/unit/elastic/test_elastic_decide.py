"""The decision: bounds, speed, calm, and that work is never ended."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flint_elastic import (
    Backlog,
    Coming,
    Decision,
    Forecast,
    Observation,
    PolicyInvalid,
    PoolPolicy,
    PoolState,
    WorkerState,
    WorkerView,
    decide,
)
from flint_elastic.queueing import late_share, slots_for_load
from flint_elastic.simulation import Day, Flint, play

NOW = 1_000_000.0


def workers(
    count: int, slots: int = 4, legs: int = 0, state: WorkerState = WorkerState.READY
) -> tuple[WorkerView, ...]:
    idle_since = None if legs else NOW - 10_000
    return tuple(WorkerView(f"{state}-{index}", state, slots, legs, idle_since, NOW - 20_000) for index in range(count))


def calm(policy: PoolPolicy, count: int, seconds: int = 600) -> PoolState:
    """The state after a quiet time with so many idle workers, none of it acted upon."""
    state = PoolState()
    for step in range(0, seconds, 5):
        seen = Observation(NOW - seconds + step, workers=workers(count, policy.slots_per_worker))
        state = decide(policy, state, seen).state
    return state


views = st.builds(
    WorkerView,
    st.uuids().map(str),
    st.sampled_from(list(WorkerState)),
    st.integers(1, 20),
    st.integers(0, 20),
    st.none() | st.floats(NOW - 2_000, NOW),
    st.floats(NOW - 5_000, NOW),
)
observations = st.builds(
    Observation,
    st.floats(NOW, NOW + 3_000),
    st.lists(st.builds(Backlog, st.integers(0, 9), st.integers(0, 5_000), st.floats(0, 5_000)), max_size=3).map(tuple),
    st.floats(0, 500),
    st.floats(0.001, 600),
    st.floats(0, 10),
    st.integers(0, 50),
    st.lists(views, max_size=30).map(tuple),
    st.lists(st.builds(Coming, st.floats(NOW, NOW + 4_000), st.integers(0, 1_000)), max_size=3).map(
        lambda coming: tuple(sorted(coming, key=lambda entry: entry.at))
    ),
    start_failures=st.integers(0, 3),
)
policies = st.builds(
    lambda minimum, more, **other: PoolPolicy(minimum=minimum, maximum=max(1, minimum + more), **other),
    st.integers(0, 10),
    st.integers(0, 40),
    slots_per_worker=st.integers(1, 16),
    buffer_slots=st.integers(0, 20),
    standby_slots=st.integers(0, 5),
    idle_before_end_s=st.sampled_from([0.0, 30.0, 300.0]),
    cooldown_up_s=st.sampled_from([0.0, 60.0]),
    maximum_step_up=st.integers(1, 100),
    consolidate=st.booleans(),
)
forecasts = st.builds(
    Forecast, st.just(NOW - 300), st.lists(st.floats(0, 100), max_size=20).map(tuple), st.floats(0, 1)
)


def test_who_waits_late_behind_legs_that_stay_gets_a_slot_each() -> None:
    """Learned times say a second; but nothing ends, and the queue stands."""
    policy = PoolPolicy(minimum=0, maximum=20, slots_per_worker=8)
    full = workers(6, 8, legs=8)
    queue = (Backlog(5, 48, oldest_wait_s=10.0),)
    moving = decide(policy, PoolState(), Observation(NOW, queue, leg_s=1.0, workers=full))
    standing = decide(policy, PoolState(), Observation(NOW, queue, leg_s=1.0, overstaying=48, workers=full))
    assert standing.start == 6 > moving.start


@settings(max_examples=80, deadline=None)
@given(policies, st.lists(observations, min_size=1, max_size=6), forecasts)
def test_whatever_is_seen_bounds_hold_and_work_is_left_alone(
    policy: PoolPolicy, seen: list[Observation], forecast: Forecast
) -> None:
    state = PoolState()
    for observation in sorted(seen, key=lambda entry: entry.at):
        decision = decide(policy, state, observation, forecast)
        by_id = {worker.id: worker for worker in observation.workers}
        live = [w for w in observation.workers if w.state in (WorkerState.STARTING, WorkerState.READY)]
        assert len(by_id) + decision.start <= max(policy.maximum, len(by_id))
        after = len(live) + decision.start + len(decision.revive) - len(decision.drain)
        assert after >= min(policy.minimum, len(live))
        assert len(live) + decision.start + len(decision.revive) <= max(policy.maximum, len(live))
        assert 0 <= decision.start <= policy.maximum_step_up
        assert all(by_id[name].state is WorkerState.READY for name in decision.drain)
        assert all(by_id[name].state is WorkerState.DRAINING for name in (*decision.revive, *decision.end))
        assert all(by_id[name].legs == 0 for name in decision.end)
        assert not (decision.start or decision.revive) or not (decision.drain or decision.end)
        assert decision == decide(policy, state, observation, forecast)
        state = decision.state


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10), st.integers(20, 5_000), st.floats(0.5, 120), st.sampled_from([0.5, 2.0, 30.0]), st.booleans()
)
def test_one_decision_answers_a_spike(
    present: int, waiting: int, leg_s: float, startup_s: float, repeated: bool
) -> None:
    policy = PoolPolicy(maximum=300, slots_per_worker=4, startup_s=startup_s, cooldown_up_s=120)
    state = calm(policy, present)
    busy = workers(present, legs=4)
    seen = Observation(NOW, (Backlog(5, waiting, 3.0),), waiting / 5, leg_s, workers=busy)
    decision = decide(policy, state, seen)
    slots = 4 * (present + decision.start)
    # Enough for all that waits, on top of what runs, to begin within the target or the time that workers need to start.
    begun = (slots - 4 * present) + slots / leg_s * max(policy.target_wait_s, startup_s)
    assert begun >= waiting or present + decision.start == policy.maximum
    if repeated and present + decision.start == policy.maximum:
        starting = tuple(
            WorkerView(f"new-{index}", WorkerState.STARTING, 4, 0, None, NOW) for index in range(decision.start)
        )
        again = decide(policy, decision.state, replace(seen, at=NOW + 5, workers=busy + starting, arrivals_per_s=0.0))
        assert again.start == 0


def even_day(rate: float, leg_s: float, lasts_s: float) -> Day:
    arrivals = [NOW + index / rate for index in range(int(lasts_s * rate))]
    return Day("even", "", NOW, arrivals, [leg_s] * len(arrivals), lasts_s=lasts_s)


@settings(max_examples=6, deadline=None)
@given(st.floats(0.05, 2), st.floats(0.2, 40), st.integers(1, 8), st.floats(1, 40))
def test_a_steady_load_moves_nothing(rate: float, leg_s: float, slots: int, startup_s: float) -> None:
    policy = PoolPolicy(maximum=400, slots_per_worker=slots, startup_s=startup_s)
    made: list[tuple[float, Decision]] = []
    flint = Flint(policy)

    def watched(seen: Observation, ended: object) -> object:
        moves = flint(seen, ended)  # type: ignore[arg-type]
        assert flint.decision is not None
        made.append((seen.at, flint.decision))
        return moves

    outcome = play(even_day(rate, leg_s, 5_400), watched, slots, startup_s, interval_s=10.0)  # type: ignore[arg-type]
    moved = [decision.why for at, decision in made if at > NOW + 3_600 and decision.action != "none"]
    assert moved == []
    assert outcome.turns <= 4


def test_erlang_by_the_book() -> None:
    assert late_share(10, 8.0, 0.0) == pytest.approx(0.409, abs=0.001)
    assert slots_for_load(8.0, 2.0, 2.0) == 11
    assert late_share(11, 8.0, 1.0) <= 0.05 < late_share(10, 8.0, 1.0)
    # The limit for large loads agrees with the sum that is exact.
    large = slots_for_load(501.0, 0.5, 10.0)
    assert late_share(large, 501.0, 0.05) <= 0.06 and late_share(large - 4, 501.0, 0.05) > 0.05


def test_from_zero_and_back() -> None:
    policy = PoolPolicy(maximum=10, slots_per_worker=4)
    first = decide(policy, PoolState(), Observation(NOW))
    assert first.action == "none" and first.wanted == 0
    woken = decide(policy, first.state, Observation(NOW + 5, (Backlog(5, 1, 1.0),), 0.2))
    assert woken.start == 1 and woken.why.startswith("start 1")
    state, drained_at = woken.state, None
    view = WorkerView("w", WorkerState.READY, 4, 0, NOW + 10, NOW + 7)
    for at in range(10, 1_200, 5):
        decision = decide(policy, state, Observation(NOW + at, workers=(view,)))
        state = decision.state
        if decision.drain:
            drained_at, view = at, replace(view, state=WorkerState.DRAINING)
        if decision.end:
            assert drained_at is not None and drained_at >= 310
            return
    raise AssertionError("an idle worker was never ended")


def test_what_is_known_to_come_is_there_in_time() -> None:
    policy = PoolPolicy(maximum=100, slots_per_worker=4, startup_s=30)
    coming = (Coming(NOW + 300, 400, 20.0),)
    assert decide(policy, PoolState(), Observation(NOW, coming=coming)).start == 0
    close = decide(policy, PoolState(), Observation(NOW + 265, coming=coming))
    assert close.start == 91 and "schedules and timers" in close.why
    # What comes within the time of idleness is not drained for.
    state = calm(policy, 5)
    assert decide(policy, state, Observation(NOW, workers=workers(5), coming=coming)).drain == ()
    assert decide(policy, state, Observation(NOW, workers=workers(5))).drain != ()


def test_a_forecast_moves_as_far_as_it_is_trusted() -> None:
    policy = PoolPolicy(maximum=100, slots_per_worker=1, startup_s=30, idle_before_end_s=300)
    rates = (1.0, 1.0, 50.0, 50.0)
    seen = Observation(NOW, arrivals_per_s=1.0, workers=workers(6, slots=1))
    starts = [decide(policy, PoolState(), seen, Forecast(NOW - 590, rates, trust)).start for trust in (0.0, 0.5, 1.0)]
    assert starts[0] == 0 < starts[1] < starts[2]
    # A fall that is forecast takes nothing away.
    falling = Forecast(NOW - 590, (50.0, 50.0, 0.0, 0.0), 1.0)
    assert decide(policy, PoolState(), seen, falling).wanted == decide(policy, PoolState(), seen).wanted


def test_legs_that_no_slot_helps_do_not_scale() -> None:
    policy = PoolPolicy(maximum=50, slots_per_worker=4)
    state = calm(policy, 2)
    for at in range(0, 120, 5):
        seen = Observation(NOW + at, (Backlog(5, 500, float(at)),), workers=workers(2))
        decision = decide(policy, state, seen)
        state = decision.state
        if at >= 20:
            assert decision.start == 0 and state.stuck == 500
    assert "although slots were free" in decision.why
    # New work on top of them is answered.
    full = Observation(NOW + 125, (Backlog(5, 700, 125.0),), 40.0, workers=workers(2, legs=4))
    assert decide(policy, state, full).start > 10


def test_legs_that_overstay_count_whole() -> None:
    policy = PoolPolicy(maximum=50, slots_per_worker=4)
    seen = Observation(NOW, arrivals_per_s=2.0, workers=workers(3, legs=4), overstaying=9)
    assert decide(policy, PoolState(), seen).wanted_slots >= 9 + 2


def test_draining_workers_come_back_before_new_ones_start() -> None:
    policy = PoolPolicy(maximum=10, slots_per_worker=4)
    draining = workers(2, legs=1, state=WorkerState.DRAINING)
    seen = Observation(NOW, (Backlog(5, 100, 1.0),), 20.0, 30.0, workers=draining)
    decision = decide(policy, PoolState(), seen)
    assert set(decision.revive) == {worker.id for worker in draining} and decision.start == 8


def test_a_lowered_maximum_is_reached_without_ending_work() -> None:
    policy = PoolPolicy(maximum=3, slots_per_worker=4)
    mixed = workers(4, legs=2) + tuple(replace(worker, id=f"idle-{worker.id}") for worker in workers(3))
    decision = decide(policy, PoolState(), Observation(NOW, workers=mixed))
    assert len(decision.drain) == 4 and decision.end == ()
    assert {worker.id for worker in workers(3)} <= {name.removeprefix("idle-") for name in decision.drain}


def test_starts_that_fail_are_tried_ever_less_often() -> None:
    policy = PoolPolicy(minimum=2, maximum=10, startup_s=2)
    state, tried = PoolState(), []
    for at in range(0, 400, 5):
        decision = decide(policy, state, Observation(NOW + at, start_failures=len(tried)))
        state = decision.state
        if decision.start:
            tried.append(at)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps == sorted(gaps) and gaps[-1] >= 100
    assert "starts fail" in decision.why


def test_lost_workers_of_the_minimum_are_replaced_in_the_cool_down() -> None:
    policy = PoolPolicy(minimum=3, maximum=5, cooldown_up_s=600)
    first = decide(policy, PoolState(), Observation(NOW))
    again = decide(policy, first.state, Observation(NOW + 5, workers=workers(1)))
    assert (first.start, again.start) == (3, 2)


def test_starts_that_never_arrive_are_given_up() -> None:
    policy = PoolPolicy(maximum=5, slots_per_worker=4, startup_s=2)
    stale = (WorkerView("gone", WorkerState.STARTING, 4, 0, None, NOW - 61),)
    seen = Observation(NOW, (Backlog(5, 1, 61.0),), workers=stale)
    assert decide(policy, PoolState(), seen).start == 1
    assert decide(policy, PoolState(), replace(seen, at=NOW - 30)).start == 0


def test_low_levels_may_wait_for_spare_capacity() -> None:
    policy = PoolPolicy(maximum=100, slots_per_worker=1, level_wait_s=((9, 3_600.0),))
    low = decide(policy, PoolState(), Observation(NOW, (Backlog(9, 600, 1.0),), leg_s=6.0))
    normal = decide(policy, PoolState(), Observation(NOW, (Backlog(5, 600, 1.0),), leg_s=6.0))
    assert low.start <= 3 and normal.start == 100


def test_shadow_says_what_would_be_done() -> None:
    policy = PoolPolicy(minimum=1, shadow=True)
    decision = decide(policy, PoolState(), Observation(NOW))
    assert decision.shadow and decision.start == 1 and decision.why.startswith("shadow: start 1")


def test_a_policy_is_checked_and_comes_back_from_json() -> None:
    policy = PoolPolicy(maximum=7, level_wait_s=((9, 60.0),))
    assert PoolPolicy.from_json(policy.to_json() | {"later": 1}) == policy
    with pytest.raises(PolicyInvalid, match="maximum is 2"):
        PoolPolicy(minimum=3, maximum=2)
    with pytest.raises(PolicyInvalid, match="level_wait_s"):
        PoolPolicy(level_wait_s=((10, 1.0),))
